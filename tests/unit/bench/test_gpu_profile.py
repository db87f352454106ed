from headrace.kernels.build import CUDA_DIR
from headrace.testing.gpu_profile import is_product, own_kernels


def test_every_kernel_of_ours_is_found_whatever_stands_before_its_name() -> None:
    """Attributes stand there, and some of them are for some macros only."""
    own = own_kernels()
    assert {"rms_norm", "change_words", "middle_product", "sample_pick"} <= own
    assert len(own) == sum(path.read_text().count('extern "C" __global__') for path in CUDA_DIR.glob("*.cu"))
    assert not [name for name in own if name.startswith("__")]


def test_products_of_ours_are_products() -> None:
    named_so = {name for name in own_kernels() if name.endswith("_product")}
    assert named_so == {"thin_product", "middle_product", "wide_product", "fixed_product"}
    assert all(map(is_product, named_so))
    assert not is_product("rms_norm")
