"""Count a CUDA kernel's warp instructions from its machine code, basic block by basic block.

    nvcc -cubin -arch=sm_90 -O3 -fmad=false -std=c++17 csrc/merge_quantize_cuda.cu -o kernel.cubin
    python csrc/sass_count.py kernel.cubin 'fused<1, true, true>'

Needs cuobjdump and nvdisasm on the path (PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm) and c++filt. Prints for
every basic block its address, its instructions, those by pipe, the commonest of them, and where it may go; backward
jumps are marked, so that loops can be read off. The epilogue's count in merge_quantize_cuda.cu is the sum over the
blocks that a row of the main path passes, divided by the 8 weights a lane has in a row.
"""

import re
import subprocess
import sys
from collections import Counter

PIPES = (
    ("fma", r"F(FMA|ADD|MUL)\b|I(MAD|DP)|HFMA2|H(ADD|MUL)2|FSWZADD"),
    ("memory", r"LD|ST|ATOM|RED|CCTL|SHFL"),
    (
        "alu",
        r"P?LOP3|PRMT|SHF|LEA|I(ADD3|SETP|MNMX|ABS)|V(IADD|IMNMX|ABSDIFF|HMNMX)|[FH]MNMX|FSE[TL]|SEL|F2FP|SGXT|MOV",
    ),
    ("double", r"D(ADD|MUL|FMA)"),
    ("convert", r"F2F|I2F|F2I|MUFU|POPC"),
    ("tensor", r"[HI]MMA"),
)


def instructions(cubin: str, kernel: str) -> list[tuple[int, str]]:
    """(address, text) of the kernel whose demangled name contains ``kernel``."""
    dump = subprocess.run(["cuobjdump", "-sass", cubin], capture_output=True, text=True, check=True).stdout
    for part in dump.split("Function : ")[1:]:
        mangled, _, body = part.partition("\n")
        name = subprocess.run(["c++filt", mangled.strip()], capture_output=True, text=True, check=True).stdout
        if kernel in name:
            found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", body, re.MULTILINE)
            return [(int(address, 16), " ".join(text.split())) for address, text in found]
    raise SystemExit(f"no kernel named {kernel!r} in {cubin}")


def blocks(code: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    """Cut at branches and at what they jump to."""
    jump = re.compile(r"\b(BRA|BSYNC|EXIT|RET|BRX|CALL|WARPSYNC)\b")
    starts = {int(m[1], 16) for _, text in code for m in [re.search(r"(?:BRA|BSSY|CALL)\b.*?0x([0-9a-f]+)", text)] if m}
    cut, current = [], []
    for address, text in code:
        if address in starts and current:
            cut.append(current)
            current = []
        current.append((address, text))
        if jump.search(text):
            cut.append(current)
            current = []
    return [*cut, current] if current else cut


def pipe_of(text: str) -> str:
    opcode = re.sub(r"^@!?U?P\w+ ", "", text)
    return next((name for name, pattern in PIPES if re.match(pattern, opcode)), "other")


def main(cubin: str, kernel: str) -> None:
    for block in blocks(instructions(cubin, kernel)):
        pipes = Counter(pipe_of(text) for _, text in block)
        ops = Counter(re.sub(r"^@!?U?P\w+ ", "", text).split(" ")[0] for _, text in block)
        last = block[-1][1]
        target = re.search(r"BRA\b.*?0x([0-9a-f]+)", last)
        end = f" -> {target[1]}{' (back)' if int(target[1], 16) <= block[-1][0] else ''}" if target else f" {last[:24]}"
        print(f"{block[0][0]:05x} {len(block):5d} {dict(pipes)}{end}")
        print("           ", ", ".join(f"{op} {n}" for op, n in ops.most_common(12)))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
