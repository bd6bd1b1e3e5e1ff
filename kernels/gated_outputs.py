"""How the kernels of products compute a gated activation of their outputs.

The weight holds the rows of the gate and then those of the projection that it multiplies, "up".
A program takes both rows of an output, side by side.
"""

import triton
import triton.language as tl


@triton.jit
def weight_rows(
    program, num_outs, BLOCK_OUT: tl.constexpr, IS_GATED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Returns the weight's rows of a program, and which exist: [BLOCK_OUT] each.

    Args:
        program: index of the program
        num_outs: columns of the output
        BLOCK_OUT: rows of the weight for each program
        IS_GATED: whether rows of gate and up alternate
    """
    places = program * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    if IS_GATED:
        outs = places // 2
        return outs + places % 2 * num_outs, outs < num_outs
    return places, places < num_outs


@triton.jit
def activated(
    total, program, dtype: tl.constexpr, IS_GATED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Returns a program's outputs and their columns.

    Args:
        total: [ROWS, BLOCK_OUT] float32, the products with the rows of `weight_rows`
        program: index of the program
        dtype: type of the outputs
        IS_GATED: whether to return gate * sigmoid(gate) * up, half as many
    """
    result = total.to(dtype)
    if IS_GATED:
        # Rounded before and after, as if the product and the activation were kernels of their own.
        pairs = tl.reshape(result.to(tl.float32), (total.shape[0], total.shape[1] // 2, 2))
        gate, up = tl.split(pairs)
        result = (gate * tl.sigmoid(gate) * up).to(dtype)
    num_columns: tl.constexpr = result.shape[1]
    return result, program * num_columns + tl.arange(0, num_columns)
