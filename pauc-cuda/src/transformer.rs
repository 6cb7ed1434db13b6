//! Transformers: tokens in rows (B·T, W), layer normalization, attention heads and their softmax, GELU.

use crate::kernel_args::{In, Out, args};
use crate::{Buffer, Context, Error, Result, View, ViewMut};

/// The shape of a batch of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenShape {
    /// Images.
    pub batch: usize,
    /// Tokens per image.
    pub tokens: usize,
    /// Values per token.
    pub width: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
}

impl TokenShape {
    /// Returns the number of tokens of all images.
    pub fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// Returns the number of elements of a matrix of tokens.
    pub fn len(&self) -> usize {
        self.rows() * self.width
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of elements of all heads' attention matrices, (B·H, T, T).
    pub fn attention_len(&self) -> usize {
        self.batch * self.heads * self.tokens * self.tokens
    }
}

/// Checks pairs of actual and expected lengths. Kernels count them in 32 bits.
fn check(operation: &'static str, pairs: &[(usize, usize)]) -> Result<()> {
    if pairs.iter().all(|(got, expected)| got == expected && (1..=u32::MAX as usize).contains(expected)) {
        return Ok(());
    }
    Err(Error::Length {
        operation,
        message: format!("expected equal lengths from 1 to 2³² − 1, got {pairs:?}"),
    })
}

/// Mean and 1/√(variance + ε) of each row.
#[derive(Debug)]
pub struct RowMoments {
    mean: Buffer,
    inverse: Buffer,
}

impl RowMoments {
    /// Allocates moments for `rows` rows.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(on: &Context, rows: usize) -> Result<Self> {
        Ok(RowMoments { mean: Buffer::uninit(on, rows)?, inverse: Buffer::uninit(on, rows)? })
    }
}

/// `y ← (x − mean)/√(variance + epsilon)·γ + β` over each row.
///
/// # Shapes
/// `x` and `y` (N, W), γ and β W, `moments` N
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn layer_norm(
    on: &Context,
    x: View<'_>,
    [gamma, beta]: [&Buffer; 2],
    epsilon: f32,
    y: ViewMut<'_>,
    moments: &mut RowMoments,
) -> Result<()> {
    let (rows, width) = (moments.mean.len(), gamma.len());
    check("layer norm", &[(x.len(), rows * width), (y.len(), rows * width), (beta.len(), width)])?;
    let RowMoments { mean, inverse } = moments;
    let (gamma, beta, w) = (In(gamma), In(beta), width as u32);
    let args = args![In(x), gamma, beta, epsilon, w, Out(y), Out(mean), Out(inverse)];
    // SAFETY: `check` has established that x and y have `rows` rows of `width` values, and that γ and β have
    // `width`. Moments have one element per row.
    unsafe { on.launch("pauc_layer_norm", rows, args) }
}

/// `dx ← dx +` the gradient of [`layer_norm`]'s input. Also accumulates the gradients of γ and β.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn layer_norm_gradient(
    on: &Context,
    dy: View<'_>,
    x: View<'_>,
    gamma: &Buffer,
    moments: &RowMoments,
    [d_gamma, d_beta]: [&mut Buffer; 2],
    dx: ViewMut<'_>,
) -> Result<()> {
    let (rows, width) = (moments.mean.len(), gamma.len());
    let all = rows * width;
    check(
        "gradient of layer norm",
        &[(dy.len(), all), (x.len(), all), (dx.len(), all), (d_gamma.len(), width), (d_beta.len(), width)],
    )?;
    let (mean, inverse, w) = (&moments.mean, &moments.inverse, width as u32);
    let args = args![In(dy), In(x), In(gamma), In(mean), In(inverse), w, Out(dx)];
    // SAFETY: `check` has established that dy, x and dx have `rows` rows of `width` values, and that γ has
    // `width`. Moments have one element per row.
    unsafe { on.launch("pauc_layer_norm_gradient", rows, args) }?;
    let args = args![In(dy), In(x), In(mean), In(inverse), rows as u32, w, Out(d_gamma), Out(d_beta)];
    // SAFETY: `check` has established that dy and x have `rows` rows of `width` values, and that the
    // gradients of γ and β have `width`. Moments have one element per row.
    unsafe { on.launch("pauc_layer_norm_parameters", width.div_ceil(32), args) }
}

/// `y ← x·Φ(x)`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn gelu(on: &Context, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    let n = x.len();
    check("gelu", &[(y.len(), n)])?;
    // SAFETY: `check` has established that both have n elements.
    unsafe { on.launch_over("pauc_gelu", n, args![n, In(x), Out(y)]) }
}

/// `g ← g·(Φ(x) + x·φ(x))`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn gelu_gradient(on: &Context, x: View<'_>, g: ViewMut<'_>) -> Result<()> {
    let n = x.len();
    check("gradient of gelu", &[(g.len(), n)])?;
    // SAFETY: `check` has established that both have n elements.
    unsafe { on.launch_over("pauc_gelu_gradient", n, args![n, In(x), Out(g)]) }
}

/// `x ← softmax(scale·x)` over each row of `width`.
///
/// # Errors
/// If the number of elements is not a multiple of `width`, or the device fails.
pub fn softmax(on: &Context, x: ViewMut<'_>, scale: f32, width: usize) -> Result<()> {
    let rows = x.len() / width.max(1);
    check("softmax", &[(x.len(), rows * width)])?;
    // SAFETY: `check` has established that x has `rows` rows of `width` values.
    unsafe { on.launch("pauc_softmax_rows", rows, args![Out(x), scale, width as u32]) }
}

/// `g ← scale·p·(g − Σ g·p)`: the gradient of [`softmax`] with outputs p.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn softmax_gradient(on: &Context, p: View<'_>, scale: f32, width: usize, g: ViewMut<'_>) -> Result<()> {
    let rows = p.len() / width.max(1);
    check("gradient of softmax", &[(p.len(), rows * width), (g.len(), rows * width)])?;
    // SAFETY: `check` has established that p and g have `rows` rows of `width` values.
    unsafe { on.launch("pauc_softmax_rows_gradient", rows, args![In(p), scale, width as u32, Out(g)]) }
}

/// Copies part `part` of rows (B·T, `parts`·W) to heads (B·H, T, d). Parts are, for example, queries, keys
/// and values side by side.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn split_heads(
    on: &Context,
    rows: View<'_>,
    (part, parts): (usize, usize),
    shape: TokenShape,
    heads: ViewMut<'_>,
) -> Result<()> {
    let [pitch, offset, t, h, d] = check_heads(shape, (part, parts), rows.len(), heads.len())?;
    let args = args![shape.len(), In(rows), pitch, offset, t, h, d, Out(heads)];
    // SAFETY: `check_heads` has established that rows have `parts` widths, and that heads have one width in
    // all.
    unsafe { on.launch_over("pauc_split_heads", shape.len(), args) }
}

/// The inverse of [`split_heads`]. Does not change the other parts of the rows.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn merge_heads(
    on: &Context,
    heads: View<'_>,
    (part, parts): (usize, usize),
    shape: TokenShape,
    rows: ViewMut<'_>,
) -> Result<()> {
    let [pitch, offset, t, h, d] = check_heads(shape, (part, parts), rows.len(), heads.len())?;
    let args = args![shape.len(), In(heads), pitch, offset, t, h, d, Out(rows)];
    // SAFETY: `check_heads` has established that rows have `parts` widths, and that heads have one width in
    // all.
    unsafe { on.launch_over("pauc_merge_heads", shape.len(), args) }
}

/// Checks all lengths. Returns the length of a row, the offset of the part in it, and the numbers of tokens,
/// heads and values per head.
fn check_heads(
    shape: TokenShape,
    (part, parts): (usize, usize),
    rows: usize,
    heads: usize,
) -> Result<[u32; 5]> {
    let TokenShape { tokens, width, heads: count, .. } = shape;
    let whole = part < parts && count > 0 && width.is_multiple_of(count);
    check("heads", &[(rows, parts * shape.len()), (heads, shape.len()), (usize::from(whole), 1)])?;
    Ok([parts * width, part * width, tokens, count, width / count].map(|v| v as u32))
}

/// Copies images (B, H, W, C) to rows of patches (B·patches, C·p²) with values in the order (C, row, column).
///
/// # Errors
/// If lengths disagree, patches do not tile the images, or the device fails.
pub fn patches(
    on: &Context,
    images: View<'_>,
    (height, width, channels): (usize, usize, usize),
    patch: usize,
    rows: ViewMut<'_>,
) -> Result<()> {
    let n = images.len();
    let tiled = patch > 0 && height.is_multiple_of(patch) && width.is_multiple_of(patch);
    let whole = n.is_multiple_of((height * width * channels).max(1));
    check("patches", &[(rows.len(), n), (usize::from(tiled && whole), 1)])?;
    let (h, w, c) = (height as u32, width as u32, channels as u32);
    // SAFETY: `check` has established that patches tile whole images, and that both have n elements.
    unsafe { on.launch_over("pauc_patches", n, args![n, In(images), h, w, c, patch as u32, Out(rows)]) }
}

/// Assembles tokens and adds position embeddings. A class token precedes the patches of each image.
///
/// # Shapes
/// `patches` (B, T or T − 1, W), `token` W, `positions` (T, W), `x` (B, T, W)
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn assemble(
    on: &Context,
    patches: View<'_>,
    token: Option<&Buffer>,
    positions: &Buffer,
    shape: TokenShape,
    x: ViewMut<'_>,
) -> Result<()> {
    let TokenShape { batch, tokens, width, .. } = shape;
    let patches_len = batch * (tokens - usize::from(token.is_some())) * width;
    let token_len = token.map_or(width, Buffer::len);
    check(
        "tokens",
        &[
            (patches.len(), patches_len),
            (token_len, width),
            (positions.len(), tokens * width),
            (x.len(), shape.len()),
        ],
    )?;
    let (t, w) = (tokens as u32, width as u32);
    let args = args![shape.len(), In(patches), In(token), In(positions), t, w, Out(x)];
    // SAFETY: `check` has established all lengths. The kernel does not read a null token.
    unsafe { on.launch_over("pauc_tokens", shape.len(), args) }
}

/// Computes the gradients of [`assemble`]: accumulates those of positions and class token, and writes those
/// of patches.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn assemble_gradient(
    on: &Context,
    g: View<'_>,
    shape: TokenShape,
    d_positions: &mut Buffer,
    d_token: Option<&mut Buffer>,
    d_patches: ViewMut<'_>,
) -> Result<()> {
    let TokenShape { batch, tokens, width, .. } = shape;
    let first = usize::from(d_token.is_some());
    let token_len = d_token.as_ref().map_or(width, |t| t.len());
    check(
        "gradient of tokens",
        &[
            (g.len(), shape.len()),
            (d_positions.len(), tokens * width),
            (token_len, width),
            (d_patches.len(), batch * (tokens - first) * width),
        ],
    )?;
    let (n, b, t, w) = (tokens * width, batch as u32, tokens as u32, width as u32);
    let args = args![n, In(g), b, t, w, Out(d_positions), Out(d_token), Out(d_patches)];
    // SAFETY: `check` has established all lengths. The kernel does not write a null token.
    unsafe { on.launch_over("pauc_tokens_gradient", n, args) }
}

/// Writes the first token of each image, or the mean of its tokens, to `y`.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn pool(on: &Context, x: View<'_>, shape: TokenShape, mean: bool, y: ViewMut<'_>) -> Result<()> {
    let n = shape.batch * shape.width;
    check("pool of tokens", &[(x.len(), shape.len()), (y.len(), n)])?;
    let args = args![n, In(x), shape.tokens as u32, shape.width as u32, mean, Out(y)];
    // SAFETY: `check` has established both lengths.
    unsafe { on.launch_over("pauc_pool_tokens", n, args) }
}

/// `g ←` the gradient of [`pool`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn pool_gradient(
    on: &Context,
    dy: View<'_>,
    shape: TokenShape,
    mean: bool,
    g: ViewMut<'_>,
) -> Result<()> {
    let n = shape.len();
    check("gradient of the pool of tokens", &[(g.len(), n), (dy.len(), shape.batch * shape.width)])?;
    let args = args![n, In(dy), shape.tokens as u32, shape.width as u32, mean, Out(g)];
    // SAFETY: `check` has established both lengths.
    unsafe { on.launch_over("pauc_pool_tokens_gradient", n, args) }
}
