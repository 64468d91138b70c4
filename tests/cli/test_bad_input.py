"""Whatever is wrong with what a user gives: one message, exit code 2, no traceback."""

import numpy as np
import pytest

from sash.errors import MeasureError

IMAGE = "1x3x16x16"


@pytest.fixture
def told(sash):
    """The message of a command that must end with exit code 2."""

    def run(*words):
        result = sash(*words)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("sash: ")
        assert "Traceback" not in result.stderr
        assert "Error: sash" not in result.stderr
        return result.stderr

    return run


def test_a_missing_file_names_the_nearest(told):
    assert "Did you mean my_model.py?" in told("forecast", "my_modle.py:Net", "--input", IMAGE)


def test_a_factory_that_raises_shows_the_line(told):
    text = told("forecast", "my_model.py:raising", "--input", IMAGE)
    assert "KeyError: 'large'" in text
    assert 'return Net(sizes["large"])' in text


def test_a_missing_factory_lists_what_the_file_offers(told):
    assert "Did you mean Net?" in told("forecast", "my_model.py:Nett", "--input", IMAGE)


def test_a_syntax_error_shows_the_line(told, folder):
    (folder / "broken.py").write_text("import torch\nclass Net(:\n    pass\n")
    assert "line 2 of broken.py: class Net(:" in told("forecast", "broken.py:Net", "--input", IMAGE)


@pytest.mark.parametrize("verb", ["forecast", "measure"])
def test_an_input_of_the_wrong_rank_says_what_came(told, verb):
    text = told(verb, "my_model.py:Net", "--input", "3x3")
    assert "first" in text
    assert "3x3" in text.replace(", ", "x").replace(" ", "")


def test_an_input_of_the_wrong_channels_names_the_layer(told):
    text = told("forecast", "my_model.py:Net", "--input", "1x4x16x16")
    assert "first" in text
    assert "3" in text
    assert "4" in text


def test_an_input_of_the_wrong_dtype_names_one_that_works(told):
    text = told("forecast", "my_model.py:Tokens", "--input", "2x8")
    assert "embed" in text
    assert "'2x8:int64<100'" in text


def test_a_whole_number_input_to_a_convolution_names_the_types(told):
    text = told("forecast", "my_model.py:Net", "--input", f"{IMAGE}:int64")
    assert "first" in text
    assert "'1x3x16x16'" in text


def test_a_whole_number_beyond_an_embedding_names_the_bound(told):
    assert "'2x8:int64<100'" in told("forecast", "my_model.py:Tokens", "--input", "2x8:int64<200", "--real")


def test_an_unknown_dtype_names_the_nearest(told):
    assert "float32" in told("forecast", "my_model.py:Net", "--input", f"{IMAGE}:flaot32")


@pytest.mark.parametrize(
    ("name", "line"),
    [("Branching", "if x.sum() > 0:"), ("Picking", "return x[x > 0]")],
)
def test_control_flow_that_needs_values_names_the_line_and_offers_real(told, name, line):
    text = told("forecast", f"my_model.py:{name}", "--input", IMAGE)
    assert "my_model.py" in text
    assert line in text
    assert "--real" in text


@pytest.mark.parametrize("name", ["Branching", "Picking", "NoFakeKernel"])
def test_real_traces_what_needs_values(sash, name):
    result = sash("forecast", f"my_model.py:{name}", "--input", IMAGE, "--real")
    assert result.exit_code == 0, result.output


def test_an_operator_without_a_fake_kernel_is_named_and_offered_real(told):
    text = told("forecast", "my_model.py:NoFakeKernel", "--input", IMAGE)
    assert "twice" in text
    assert "fake" in text
    assert "--real" in text


def test_a_model_that_puts_itself_on_a_missing_device_shows_the_line(told):
    text = told("forecast", "my_model.py:OnCuda", "--input", IMAGE)
    assert "CUDA" in text
    assert 'self.to("cuda")' in text


def test_a_forward_that_moves_to_another_device_names_it(told):
    text = told("forecast", "my_model.py:InputToCuda", "--input", IMAGE)
    assert "cuda" in text
    assert "cpu" in text


def test_a_model_without_values_is_forecast(sash):
    result = sash("forecast", "my_model.py:on_meta", "--input", IMAGE)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("shape", ["nanx3x16x16", "1x3xNaNx16", "-1x3x16x16", "0x3x16x16", "1x3x1.5x16", "", "1xx3"])
def test_a_size_that_is_no_size_is_named(told, shape):
    assert "positive whole number" in told("forecast", "my_model.py:Net", "--input", shape)


@pytest.mark.parametrize("verb", ["forecast", "measure"])
def test_an_unknown_optimizer_names_the_nearest(told, verb):
    text = told(verb, "my_model.py:Net", "--input", IMAGE, "--train", "--optimizer", "adamwx")
    assert "'adamwx'" in text
    assert "AdamW" in text


def test_an_optimizer_without_training_says_what_is_missing(told):
    assert "train" in told("forecast", "my_model.py:Net", "--input", IMAGE, "--optimizer", "adamw")


def test_an_unknown_autocast_names_those_that_work(told):
    assert "bf16" in told("forecast", "my_model.py:Net", "--input", IMAGE, "--autocast", "int3")


def test_no_micro_batch_is_refused(told):
    assert "accumulate" in told("forecast", "my_model.py:Net", "--input", IMAGE, "--train", "--accumulate", "0")


def test_a_loss_that_is_missing_is_named(told):
    text = told("forecast", "my_model.py:Net", "--input", IMAGE, "--train", "--loss", "my_model.py:totl")
    assert "Did you mean total?" in text


def test_a_loss_that_is_no_scalar_is_refused(told):
    text = told("forecast", "my_model.py:Net", "--input", IMAGE, "--train", "--loss", "my_model.py:not_scalar")
    assert "scalar" in text


def test_an_unknown_keyword_input_is_named(told):
    text = told("forecast", "my_model.py:Net", "--input", IMAGE, "--input", "musk=1x8x16x16")
    assert "musk" in text
    assert "Net.forward(x, mask=None)" in text


def test_a_keyword_given_twice_is_refused(told):
    assert "twice" in told("forecast", "my_model.py:Net", "--input", "mask=1x8x16x16", "--input", "mask=1x8x16x16")


def test_a_family_that_does_not_exist_names_the_nearest(told):
    assert "did you mean unet?" in told("forecast", "unett", "--input", IMAGE)


def test_a_missing_picture_names_the_nearest(told, folder):
    np.save(folder / "sound.npy", np.zeros(3, np.float32))
    assert "did you mean sound.npy?" in told("forecast", "my_model.py:Net", "--input", "sond.npy")


def test_an_array_of_objects_is_refused(told, folder):
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    assert "objects.npy cannot be read" in told("forecast", "my_model.py:Net", "--input", "objects.npy")


def test_a_picture_that_is_none_is_refused(told, folder):
    (folder / "text.png").write_text("no picture")
    assert "cannot be read as a picture" in told("forecast", "my_model.py:Net", "--input", "text.png")


def test_a_report_in_a_missing_folder_is_refused_before_the_work(told):
    assert "does not exist" in told("forecast", "my_model.py:Net", "--input", IMAGE, "--html", "nowhere/report.html")


def test_a_walk_that_cannot_be_read_is_refused(told):
    assert "conf" in told("walk", "40 | conf 8")


def test_debug_lets_the_traceback_through(sash):
    result = sash("forecast", "my_modle.py:Net", "--input", IMAGE, "--debug")
    assert type(result.exception).__name__ == "ModelError"


@pytest.mark.parametrize("words", [(), ("forecast", "my_model.py:Net"), ("forecast",), ("measure", "x:y", "--runs", "0"), ("nonsense",)])
def test_words_that_are_missing_or_wrong_end_with_exit_code_2(sash, words):
    assert sash(*words).exit_code == 2


def test_a_measurement_that_died_ends_with_exit_code_1(sash, monkeypatch):
    def died(*args, **kwargs):
        raise MeasureError("the measuring process was killed")

    monkeypatch.setattr("sash.cost.measure", died)
    result = sash("measure", "my_model.py:Net", "--input", IMAGE)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "sash: the measuring process was killed"


def test_a_fault_of_sash_is_no_wrong_use(sash, monkeypatch):
    monkeypatch.setattr("sash.cost.forecast", lambda *args, **kwargs: 1 / 0)
    result = sash("forecast", "my_model.py:Net", "--input", IMAGE)
    assert result.exit_code == 70
    assert "ZeroDivisionError" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
