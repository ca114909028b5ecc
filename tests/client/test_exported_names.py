"""The public names of the client."""

import digits_client


def test_all_is_what_the_package_exports():
    """`__all__` is sorted and holds exactly the public names."""
    public = sorted(name for name in vars(digits_client) if not name.startswith("_"))
    modules = {"annotations", "testing", "watch"}
    assert sorted(digits_client.__all__) == [name for name in public if name not in modules]
