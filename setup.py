"""Builds the compiled kernel ``qru._C`` with CMake and Ninja. Everything else about the package is in pyproject.toml.

Environment:
    QRU_BUILD_EXTENSION   auto (default: build when a C++ compiler is there), on (fail without one) or off.
    QRU_CUDA              auto (default: when nvcc is there), on or off.
    QRU_CUDA_ARCHS        compute capabilities, default "80;90;100".
    QRU_SANITIZE          sanitizers for the C++ part, such as "address,undefined".
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def choice(variable: str) -> str:
    value = os.environ.get(variable, "auto").lower()
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{variable}={value!r}: choose auto, on or off")
    return value


def compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


def wheel_program(package: str) -> str:
    """A program from its wheel in the build environment, or from the path."""
    beside = Path(sys.executable).with_name(package)
    return str(beside) if beside.exists() else shutil.which(package) or package


class CMakeBuild(build_ext):
    def run(self):
        wanted = choice("QRU_BUILD_EXTENSION")
        if wanted == "off":
            print("qru: the kernel is not built (QRU_BUILD_EXTENSION=off); the PyTorch reference will run")
            self.extensions = []
            return
        try:
            if compiler() is None:
                raise RuntimeError("no C++ compiler (looked for $CXX, c++, g++, clang++)")
            super().run()
        except Exception as error:
            if wanted == "on":
                raise
            print(f"qru: the kernel is NOT built: {error}", file=sys.stderr)
            print("qru: the install goes on; the PyTorch reference will run in its place", file=sys.stderr)
            self.extensions = []

    def get_outputs(self):
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self):
        if self.extensions:
            super().copy_extensions_to_source()

    def build_extension(self, extension):
        import pybind11

        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                wheel_program("cmake"),
                "-S",
                str(ROOT / "csrc"),
                "-B",
                str(build),
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={wheel_program('ninja')}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
                f"-DCMAKE_CXX_COMPILER={shutil.which(compiler())}",
                f"-DQRU_CUDA={choice('QRU_CUDA')}",
                f"-DQRU_CUDA_ARCHS={os.environ.get('QRU_CUDA_ARCHS', '80;90;100')}",
                f"-DQRU_SANITIZE={os.environ.get('QRU_SANITIZE', '')}",
            ],
            check=True,
        )
        subprocess.run([wheel_program("cmake"), "--build", str(build)], check=True)
        built = next(target.parent.glob("_C*.so"))
        if built != target:
            built.replace(target)
        print(f"qru: built {target.name} with {compiler()}")


setup(ext_modules=[Extension("qru._C", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
