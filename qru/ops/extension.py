"""The compiled kernel, if it was built: loading it, and saying what is there."""

import functools
import importlib
import importlib.util
import os
import warnings

BUILD_COMMAND = (
    "pip install --no-deps --force-reinstall . (in a checkout: pip install --no-deps -e .), with a C++ compiler"
)


@functools.cache
def extension():
    """The module ``qru._C``, or None when it is not built.

    ``QRU_EXTENSION=off`` leaves it out; ``QRU_EXTENSION=/path/to/_C.so`` takes another build, such as a sanitized one.
    """
    wanted = os.environ.get("QRU_EXTENSION", "")
    if wanted.lower() == "off":
        return None
    if wanted:
        found = importlib.util.spec_from_file_location("qru._C", wanted)
        if found is None or not os.path.isfile(wanted):
            raise ValueError(f"QRU_EXTENSION is {wanted!r}; give 'off', the path of a built _C*.so, or nothing")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module
    try:
        return importlib.import_module("qru._C")
    except ModuleNotFoundError:
        return None


def build_info() -> dict:
    """What the installed kernel was built with and what it will use here.

    Returns:
        ``built``; and when built ``compiler``, ``isa`` (the instruction set chosen on this machine), ``isas`` (those
        compiled in), ``openmp``, ``cuda`` (bool) and ``cuda_archs`` (compute capabilities compiled in).
    """
    module = extension()
    if module is None:
        return {"built": False, "how": BUILD_COMMAND}
    return {"built": True, **module.build_info()}


@functools.cache
def warn_not_built(device_type: str) -> None:
    """Say once per process and kind of device that the slow reference runs, and how to change that."""
    kernel = "qru kernel" if device_type == "cpu" else f"qru kernel for {device_type}"
    warnings.warn(
        f"the {kernel} is not built: the PyTorch reference runs, same results, much slower. Build: {BUILD_COMMAND}",
        RuntimeWarning,
        stacklevel=3,
    )
