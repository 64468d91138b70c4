"""What each operator's kernel allocates inside, beside its results."""
from sash.cost._scratch_convolution import backward_scratch, forward_scratch
_RULES={"aten.convolution.default":forward_scratch,"aten.convolution_backward.default":backward_scratch}
def kernel_scratch(func, args, kwargs, outputs):
    rule=_RULES.get(str(func))
    return 0 if rule is None else rule(args,kwargs,outputs)
