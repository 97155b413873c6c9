"""Make `gf256_0x11d.json` with galois, whose finite fields are independent of ours.

    python -m venv venv && venv/bin/pip install galois && venv/bin/python generate.py

Only galois computes here: products, inverses, powers of g = 2, and the parity of Cauchy codes as a
matrix product in its field.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

#: Not among our dependencies, so type checkers cannot see it.
galois: Any = importlib.import_module("galois")
GF = galois.GF(2**8, irreducible_poly="x^8 + x^4 + x^3 + x^2 + 1", primitive_element="x")


def stripe(k: int, m: int, chunk_bytes: int) -> dict[str, object]:
    """One stripe of the code whose parity row i, column j is 1 / ((k + i) + j)."""
    data = np.arange(k * chunk_bytes, dtype=np.int64).reshape(k, chunk_bytes)
    data = (data * 167 + data // 256 * 31 + 13) % 256
    rows, columns = np.arange(k, k + m)[:, None], np.arange(k)[None, :]
    cauchy = GF(1) / (GF(rows + 0 * columns) + GF(0 * rows + columns))
    parity = cauchy @ GF(data)
    return {
        "k": k,
        "m": m,
        "cauchy": np.asarray(cauchy).tolist(),
        "data": [bytes(row.astype(np.uint8)).hex() for row in data],
        "parity": [bytes(np.asarray(row).astype(np.uint8)).hex() for row in parity],
    }


def main() -> None:
    """Write the vectors next to this script."""
    elements = GF(np.arange(256))
    products = np.asarray(np.multiply.outer(elements, elements)).astype(np.uint8)
    vectors = {
        "made_with": f"galois {galois.__version__}",
        "polynomial": 0x11D,
        "powers_of_2": [int(GF(2) ** power) for power in range(255)],
        "inverses": [int(value) for value in GF(1) / elements[1:]],
        "products_of_0x8e": [int(value) for value in products[0x8E]],
        "sha256_of_all_products": hashlib.sha256(products.tobytes()).hexdigest(),
        "stripes": [stripe(4, 2, 67), stripe(10, 4, 67), stripe(17, 9, 5), stripe(1, 3, 8)],
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in vectors.items()]
    path = Path(__file__).with_name("gf256_0x11d.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
