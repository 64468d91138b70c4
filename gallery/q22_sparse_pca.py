"""
PCA of a large sparse matrix: how many components explain 90 % of the variance? Or a topic model instead?
=========================================================================================================

A matrix of documents by terms is nearly all zeros. Principal components want its columns centred, and then it has no zeros left: 22,490
documents by 120,000 terms are 20 GiB. But the centred matrix need not exist. Its products with vectors and its inner products are those of
the sparse one with a correction of rank one, so that the components are exact, and a share of the variance can be asked for.

This page takes real texts, asks for 90 % of the variance, looks at what the first components mean in words, and sets a topic model beside
them.
"""

# %%
# Texts
# -----
# The descriptions of Debian's packages, where this machine has their long form; else the docstrings of the libraries that sash is tested
# with. Of either, at most 5,000 that a seed draws, so that the page is built in two minutes. Each has a label, for a test further down:
# what a package's name begins with, as python3-, or the library.

import ast
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import scipy.io
import scipy.sparse
import zarr
from sklearn import decomposition
from sklearn.feature_extraction.text import CountVectorizer

from sash.arrays import pca, topics
from sash.units import format_bytes, format_seconds

MOST, FEW = 5000, 2000
KINDS = ("python3-", "golang-", "node-", "r-", "ruby-", "php-", "fonts-", "texlive-", "gir1.2-", "hunspell-", "task-", "kde-", "gnome-")
LIBRARIES = ("numpy", "scipy", "sklearn", "matplotlib", "skimage")


def packages() -> dict[str, tuple[str, str]]:
    """Debian's packages: label and long description, where their translations into English were fetched."""
    found = {}
    for path in sorted(Path("/var/lib/apt/lists").glob("*_main_i18n_Translation-en*")):
        told = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], capture_output=True, text=True, check=True).stdout
        for name, text in re.findall(r"^Package: (.*)\n(?:.*\n)*?Description-en: (.*(?:\n .*)*)", told, re.MULTILINE):
            label = next((kind for kind in KINDS if name.startswith(kind)), "lib" if name.startswith("lib") else "other")
            found[name] = label, text
    return found


def docstrings() -> dict[str, tuple[str, str]]:
    """Functions, classes and modules of installed libraries: label and docstring."""
    found = {}
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        for path in sorted(Path(spec.origin).parent.rglob("*.py")) if spec and spec.origin else ():
            if "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = ast.get_docstring(node) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) else None
                if text and len(text) > 300:
                    found[f"{path}:{getattr(node, 'name', '')}"] = library, text
    return found


texts, corpus = packages(), "long descriptions of Debian's packages"
if len(texts) < MOST:
    texts, corpus = docstrings(), f"docstrings of {', '.join(LIBRARIES)}"
everything = sorted({text: label for label, text in texts.values()}.items())
drawn = np.random.default_rng(0).permutation(len(everything))[:MOST]
labels = np.array([everything[number][1] for number in drawn])
vectorizer = CountVectorizer(stop_words="english", min_df=2, token_pattern=r"[a-zA-Z]{3,}")
counts = vectorizer.fit_transform([everything[number][0] for number in drawn])

folder = tempfile.TemporaryDirectory()
docs = Path(folder.name) / "docs.mtx"
scipy.io.mmwrite(docs, counts)
(Path(folder.name) / "docs.vocab.txt").write_text("\n".join(vectorizer.get_feature_names_out()) + "\n")
ROWS, COLUMNS = counts.shape
dense_bytes = 8 * ROWS * COLUMNS
print(f"corpus: {corpus}; {ROWS} of {len(everything)}")
print(f"{ROWS} × {COLUMNS}, {counts.nnz} numbers other than zero, {counts.nnz / ROWS / COLUMNS:.2%} of all")
print(f"dense in float64: {format_bytes(dense_bytes)}; docs.mtx: {format_bytes(docs.stat().st_size)}")

# %%
# The first hundred components
# ----------------------------
# Counts are weighed by how rare their term is (``weights="tfidf"``), rows have length one. The process that finds the components notes how
# much memory it grows by; the result goes to a zarr folder.

SHARE, BUDGET = 0.9, "256 MiB"
CHILD = """
import sys, time
import numpy as np
from sash.arrays import pca

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

source, out, asked, budget = sys.argv[1:]
asked = {"components": int(asked)} if float(asked) >= 1 else {"variance": float(asked)}
with open(out + ".mtx", "w") as file:  # so that libraries load what they need
    file.write("%%MatrixMarket matrix coordinate real general\\n300 200 600\\n")
    file.writelines(f"{i % 300 + 1} {i % 199 + 1} {i % 7 + 1}\\n" for i in range(600))
small = {"variance": 0.9} if "variance" in asked else {"components": 20}
pca(out + ".mtx", **small, out=out + ".small.zarr", weights="tfidf", budget="256 MiB", progress=False)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest level counts from here
before, started = status("VmRSS"), time.perf_counter()
pca(source, **asked, out=out, weights="tfidf", budget=budget, progress=False)
print(status("VmHWM") - before, time.perf_counter() - started)
"""


def measured(source: Path, out: Path, asked: float, budget: str) -> tuple[int, float]:
    """Bytes that a process grows by, and its seconds."""
    run = subprocess.run([sys.executable, "-c", CHILD, source, out, str(asked), budget], capture_output=True, text=True, check=True)
    grown, took = run.stdout.split()
    return int(grown), float(took)


out = Path(folder.name) / "model.zarr"
print(pca(docs, components=100, out=out, weights="tfidf", budget=BUDGET, plan_only=True))
grown, took = measured(docs, out, 100, BUDGET)
print(f"measured: grew by {format_bytes(grown)} in {format_seconds(took)}; the dense matrix alone is {format_bytes(dense_bytes)}")
model = zarr.open_group(out, mode="r")
ratio, scores = model["explained_variance_ratio"][:], model["scores"][:]
kept = np.cumsum(ratio)
print(f"100 components explain {kept[-1]:.1%} of the variance")

# %%
# 90 % of the variance
# --------------------
# How many components a share takes only all eigenvalues tell: those of the rows' centred inner products, if rows are fewer than columns.
# They are as many numbers as rows times rows, and their time grows with the cube of the rows. So here it is the first 2,000 of the texts;
# and beside it the plan for 22,490 × 120,000, for which nothing runs but an early estimate and the chooser.

few, share_out = Path(folder.name) / "few.mtx", Path(folder.name) / "share.zarr"
scipy.io.mmwrite(few, counts[:FEW])
print(pca(few, variance=SHARE, out=share_out, weights="tfidf", budget="1 GiB", plan_only=True))
share_grown, share_took = measured(few, share_out, SHARE, "1 GiB")
print(f"measured: grew by {format_bytes(share_grown)} in {format_seconds(share_took)}; dense: {format_bytes(8 * FEW * COLUMNS)}")
all_of_it = zarr.open_group(share_out, mode="r")
own = all_of_it["explained_variance_ratio"][:]
total = np.cumsum(own)
K = len(own)
enough = {share: int(np.searchsorted(total, share)) + 1 for share in (0.25, 0.5, 0.75)}
print(f"{K} components explain {total[-1]:.6f}, {K - 1} explain {total[-2]:.6f}")

try:
    decomposition.PCA(SHARE).fit(scipy.sparse.csr_array(counts[:FEW]))
except (TypeError, ValueError) as error:
    print(f"scikit-learn's PCA({SHARE}) of the same sparse matrix: {str(error).splitlines()[0]}")

rng = np.random.default_rng(0)
size, terms, entries = 22_490, 120_000, 4_200_000
places = rng.integers(0, size, entries), np.minimum(np.exp(rng.random(entries) * np.log(terms)).astype(int), terms - 1)
asked = scipy.sparse.coo_array((np.ones(entries), places), shape=(size, terms)).tocsr()
large = pca(asked, variance=SHARE, out=Path(folder.name) / "large.zarr", budget="8 GiB", plan_only=True)
print(large)
del asked, places

fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
axes[0].loglog(np.arange(1, K + 1), own, color="#0072B2")
axes[0].set(title="explained by each component", xlabel="component", ylabel="share of the variance")
axes[1].plot(np.arange(1, K + 1), total, color="#E69F00", linewidth=2)
for share, count in {**enough, SHARE: K}.items():
    axes[1].plot([0, count, count], [share, share, 0], color="black", linewidth=0.8, linestyle=":")
    axes[1].annotate(f"{share:.0%}: {count}", (count, share), (6, -12), textcoords="offset points")
axes[1].set(title="explained by all up to it", xlabel="components", ylabel="share of the variance", ylim=(0, 1), xlim=(0, K * 1.3))

# %%
# What the first components mean
# ------------------------------
# A component is a direction; its largest loadings are the terms that change most along it. Signs count: texts with the blue terms lie at
# one end, texts with the red ones at the other.

names = np.array(vectorizer.get_feature_names_out())
SHOWN, TERMS = 6, 9
fig, axes = plt.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
for place, axis in enumerate(axes.flat[:SHOWN]):
    own = model["loadings"][place]
    top = np.argsort(-np.abs(own), kind="stable")[:TERMS]
    axis.barh(names[top], own[top], color=["#0072B2" if value > 0 else "#D55E00" for value in own[top]])
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_title(f"component {place + 1}: {ratio[place]:.2%} of the variance", fontsize=10)

# %%
# Few loadings carry a component
# ------------------------------
# Most loadings are near zero. ``loadings_above`` keeps the larger ones, as a sparse matrix, and tells how long the rest of each component
# is: a new text's score is off by at most that times the length of its centred row.

ABOVE = (0.003, 0.01, 0.03, 0.1)
print(f"{'loadings above':>15}{'kept':>9}{'bytes of components':>22}{'left out':>10}{'scores off, at most':>21}{'and by the bound':>18}")
for above in (0.0, *ABOVE):
    sparse = pca(docs, components=100, weights="tfidf", budget=BUDGET, loadings_above=above, progress=False)
    taken = sum(part.nbytes for part in (sparse.components.data, sparse.components.indices, sparse.components.indptr))
    off = np.abs(sparse.transform(counts) - sparse.scores).max()
    # Rows of tf-idf have length one, and are no longer where they are centred than by the length of the means.
    bound = sparse.left_out.max() * (1 + np.linalg.norm(sparse.mean))
    share = sparse.components.nnz / sparse.components.shape[0] / sparse.components.shape[1]
    print(f"{above:>15}{share:>9.1%}{format_bytes(taken):>22}{sparse.left_out.max():>10.2f}{off:>21.3f}{bound:>18.3f}")
print(f"dense: {format_bytes(8 * 100 * COLUMNS)}; the scores' largest number is {np.abs(scores).max():.2f}")

# %%
# A topic model beside it
# -----------------------
# Latent Dirichlet allocation takes the counts as they are. Each text is a mixture of topics, each topic a distribution over terms; nothing
# is negative. It is learnt a batch of rows at a time, inside a budget as well. Perplexity is that of words that were not learnt from: as if
# each had to be chosen from so many. Coherence (NPMI) tells how much more often than by chance a topic's terms share a text.

TOPICS = 16
started = time.perf_counter()
found = topics(docs, TOPICS, budget="128 MiB", passes=6, progress=False)
print(found)
print(f"{format_seconds(time.perf_counter() - started)}; holds {format_bytes(found.peak_bytes)} at most, by forecast")

fig, axes = plt.subplots(2, 4, figsize=(12, 6), layout="constrained")
for topic, axis in zip(found.topics, axes.flat, strict=False):
    axis.barh([term.name for term in topic.terms[:8]], [term.probability for term in topic.terms[:8]], color="#009E73")
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.set_title(f"{topic.share:.0%} of all words, NPMI {topic.npmi:.2f}", fontsize=9)

# %%
# What each is good for
# ---------------------
# Two tests. First, neighbours: how often does a text's nearest other text have its label, by so many numbers a text? Second, what is
# lost: how much of the variance so many numbers keep.


def same_label(rows: np.ndarray) -> float:
    """Share of texts whose nearest other one, by the angle, has the same label."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length > 0, length, 1)
    right = 0
    for first in range(0, len(rows), 1000):
        near = rows[first : first + 1000] @ rows.T
        near[np.arange(len(near)), np.arange(first, first + len(near))] = -2
        right += int((labels[near.argmax(axis=1)] == labels[first : first + 1000]).sum())
    return right / len(rows)


neighbours = {f"{count} components": same_label(scores[:, :count]) for count in (TOPICS, 100)}
neighbours[f"{TOPICS} topics"] = same_label(np.sqrt(found.documents))
commonest = max(float((labels == label).mean()) for label in np.unique(labels))
print(f"{'numbers a text':<18}{'neighbour has its label':>25}{'variance kept':>16}")
for name, share in neighbours.items():
    told = f"{kept[int(name.split()[0]) - 1]:.1%}" if "components" in name else ""
    print(f"{name:<18}{share:>25.1%}{told:>16}")
print(f"the commonest of {len(np.unique(labels))} labels is that of {commonest:.1%} of the texts")

fig, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
bars = axis.barh(list(neighbours), list(neighbours.values()), color=["#0072B2"] * 2 + ["#009E73"])
axis.bar_label(bars, fmt="{:.0%}", padding=3)
axis.axvline(commonest, color="black", linewidth=0.8, linestyle=":")
axis.invert_yaxis()
axis.set(xlim=(0, 1), xlabel="texts whose nearest neighbour has their label (dotted: the commonest label)")

# %%
# The answer
# ----------

first = ", ".join(names[np.argsort(-np.abs(model["loadings"][0]), kind="stable")[:4]])
print(
    fill(
        f"Components: yes, without making it dense. The first hundred of {ROWS} × {COLUMNS} were found in a process that grew by "
        f"{format_bytes(grown)}, where the dense matrix is {format_bytes(dense_bytes)}; they explain {kept[-1]:.0%}. As many as explain "
        f"{SHARE:.0%} are {K} for {FEW} of the texts, and {enough[0.5]} explain half. For {size} × {terms} the plan is {large.method}, "
        f"with {format_bytes(large.peak_bytes)} and {format_seconds(large.wall_s or 0)} by this machine's rates; dense it is "
        f"{format_bytes(8 * size * terms)}.",
        100,
    )
)
print()
print(
    fill(
        f"Is {SHARE:.0%} what you want? Text is not of low rank: the share grows slowly, and a component far down the list says nothing in "
        f"words. The first do: number one goes along {first}. Ask for a share to compress without much loss, and for a hundred or so to "
        f"compare texts: by those the nearest text has the same label in {neighbours['100 components']:.0%} of cases.",
        100,
    )
)
print()
best = max((topic for topic in found.topics if topic.share > 0.5 / TOPICS), key=lambda topic: topic.npmi)
print(
    fill(
        f"Or topics: to read, as each is a list of words. The most coherent of the larger ones begins with "
        f"{', '.join(term.name for term in best.terms[:4])}. Where half of a text is known, another word of it is as hard to guess as one "
        f"of {found.perplexity or 0:.0f} that are alike, and without topics as one of {found.unigram_perplexity or 0:.0f}. As coordinates "
        f"{TOPICS} topics find a text's like in {neighbours[f'{TOPICS} topics']:.0%} of cases, where as many components find it in "
        f"{neighbours[f'{TOPICS} components']:.0%}; and they depend on the seed, which components do not.",
        100,
    )
)
folder.cleanup()
