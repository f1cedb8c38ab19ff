"""Products of float32 matrices in torch by oneDNN: MKL, which torch calls for them, is slow on AMD's processors.

On an EPYC (Zen 5) oneDNN's AVX-512 kernels take less than half of the time: `pytest benchmarks/suites -k product`.
"""

from __future__ import annotations

_MOST_ERROR = 1e-5  # of the largest product, with 256 columns: float32 gives 3e-7, bfloat16 2e-3


def multiply_by_onednn() -> bool:
    """Lead torch's float32 products on the CPU to oneDNN, for the whole process; whether that was done.

    torch hands them over when it may round to bfloat16 on the way, which oneDNN makes use of on processors with AMX.
    There nothing is changed, nor where there is a GPU, whose precision the same setting lowers. Sums come in another
    order than MKL's, and are as exact.
    """
    import torch

    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if not _is_exact():
        torch.set_float32_matmul_precision(before)
        return False
    return True


def _is_exact() -> bool:
    """Whether products of float32 matrices have no more error than sums of float32."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 256, generator=generator) for _ in range(2))
    expected = left.double() @ right.double().T
    error = ((left @ right.T).double() - expected).abs().max() / expected.abs().max()
    return float(error) < _MOST_ERROR
