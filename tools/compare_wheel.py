"""Compare a wheel's packages with the tree: ``compare_wheel.py WHEEL ROOT``."""

import sys
import zipfile
from pathlib import Path

SOURCES = {"spectral_core": ".", "spectral_backends": "backends", "spectral_adapters": "adapters"}


def main(wheel: str, root: str) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    expected = {
        path.relative_to(Path(root) / folder).as_posix()
        for package, folder in SOURCES.items()
        for path in (Path(root) / folder / package).rglob("*")
        if path.is_file() and path.suffix in (".py", ".typed")
    }
    if packed != expected:
        sys.exit(
            f"the wheel differs from the tree; missing: {sorted(expected - packed)}, "
            f"too many: {sorted(packed - expected)}"
        )
    print(f"{Path(wheel).name}: {len(packed)} files, as in the tree")


if __name__ == "__main__":
    main(*sys.argv[1:])
