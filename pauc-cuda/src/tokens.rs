//! Transformers: rows of tokens, layer normalisation, heads, attention's softmax, GELU.

use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View, args};

/// The shape of a batch of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Values of a token.
    pub width: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
}

impl Tokens {
    /// Tokens of all images.
    pub fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// Elements of a matrix of tokens.
    pub fn len(&self) -> usize {
        self.rows() * self.width
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of the attention of all heads.
    pub fn attention(&self) -> usize {
        self.batch * self.heads * self.tokens * self.tokens
    }
}

fn need(operation: &'static str, pairs: &[(usize, usize)]) -> Result<()> {
    if pairs.iter().all(|(have, want)| have == want && *want > 0 && *want <= u32::MAX as usize) {
        return Ok(());
    }
    Err(Error::Length { operation, message: format!("lengths and what they should be: {pairs:?}") })
}

/// Mean and 1/deviation of each row.
#[derive(Debug)]
pub struct RowMoments {
    mean: Buffer,
    inverse: Buffer,
}

impl RowMoments {
    /// For so many rows.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn new(on: &Context, rows: usize) -> Result<Self> {
        Ok(RowMoments { mean: Buffer::any(on, rows)?, inverse: Buffer::any(on, rows)? })
    }
}

/// `y ← (x − mean)/√(variance + epsilon)·γ + β` over each row.
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
    need("layer norm", &[(x.len(), rows * width), (y.len(), rows * width), (beta.len(), width)])?;
    let args = args![x, gamma, beta, epsilon, width as u32, y, &moments.mean, &moments.inverse];
    // SAFETY: so many rows of the width, and one moment each.
    unsafe { on.launch("pauc_layer_norm", rows, args) }
}

/// `dx ← dx +` the gradient of [`layer_norm`]'s input; those of γ and β are added to as well.
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
    need(
        "gradient of layer norm",
        &[(dy.len(), all), (x.len(), all), (dx.len(), all), (d_gamma.len(), width), (d_beta.len(), width)],
    )?;
    let (mean, inverse, w) = (&moments.mean, &moments.inverse, width as u32);
    // SAFETY: so many rows of the width, and one moment each.
    unsafe {
        on.launch("pauc_layer_norm_gradient", rows, args![dy, x, gamma, mean, inverse, w, dx])?;
        let args = args![dy, x, mean, inverse, rows as u32, w, d_gamma, d_beta];
        on.launch("pauc_layer_norm_parameters", width.div_ceil(32), args)
    }
}

/// `y ← x·Φ(x)`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn gelu(on: &Context, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    let n = x.len();
    need("gelu", &[(y.len(), n)])?;
    // SAFETY: both have n elements.
    unsafe { on.launch_over("pauc_gelu", n, args![n, x, y]) }
}

/// `g ← g·(Φ(x) + x·φ(x))`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn gelu_gradient(on: &Context, x: View<'_>, g: ViewMut<'_>) -> Result<()> {
    let n = x.len();
    need("gradient of gelu", &[(g.len(), n)])?;
    // SAFETY: both have n elements.
    unsafe { on.launch_over("pauc_gelu_gradient", n, args![n, x, g]) }
}

/// Each row of `width` becomes the softmax of its `scale`-fold.
///
/// # Errors
/// If the elements are no whole number of rows, or the device fails.
pub fn softmax(on: &Context, x: ViewMut<'_>, scale: f32, width: usize) -> Result<()> {
    let rows = x.len() / width.max(1);
    need("softmax", &[(x.len(), rows * width)])?;
    // SAFETY: so many rows of the width.
    unsafe { on.launch("pauc_softmax_rows", rows, args![x, scale, width as u32]) }
}

/// `g ← scale·p·(g − Σ g·p)`: the gradient of [`softmax`], whose outputs are p.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn softmax_gradient(on: &Context, p: View<'_>, scale: f32, width: usize, g: ViewMut<'_>) -> Result<()> {
    let rows = p.len() / width.max(1);
    need("gradient of softmax", &[(p.len(), rows * width), (g.len(), rows * width)])?;
    // SAFETY: so many rows of the width.
    unsafe { on.launch("pauc_softmax_rows_gradient", rows, args![p, scale, width as u32, g]) }
}

/// Part `part` of rows that are `parts` widths long becomes heads (B·H, T, d).
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn split_heads(
    on: &Context,
    rows: View<'_>,
    (part, parts): (usize, usize),
    shape: Tokens,
    heads: ViewMut<'_>,
) -> Result<()> {
    need("heads", &[(rows.len(), parts * shape.len()), (heads.len(), shape.len())])?;
    // SAFETY: the kernel reads the rows and writes the heads.
    unsafe { move_heads(on, rows.address(), (part, parts), shape, heads.address(), false) }
}

/// The reverse of [`split_heads`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn merge_heads(
    on: &Context,
    heads: View<'_>,
    (part, parts): (usize, usize),
    shape: Tokens,
    rows: ViewMut<'_>,
) -> Result<()> {
    need("heads", &[(rows.len(), parts * shape.len()), (heads.len(), shape.len())])?;
    // SAFETY: the kernel reads the heads and writes the rows.
    unsafe { move_heads(on, rows.address(), (part, parts), shape, heads.address(), true) }
}

unsafe fn move_heads(
    on: &Context,
    rows: u64,
    (part, parts): (usize, usize),
    shape: Tokens,
    heads: u64,
    back: bool,
) -> Result<()> {
    let Tokens { tokens, width, heads: count, .. } = shape;
    let (pitch, offset) = ((parts * width) as u32, (part * width) as u32);
    let d = (width / count.max(1)) as u32;
    let args = args![shape.len(), rows, pitch, offset, tokens as u32, count as u32, d, heads, back];
    // SAFETY: as the caller answers for.
    unsafe { on.launch_over("pauc_heads", shape.len(), args) }
}

/// Rows of patches (B·patches, C·p²), values in the order (C, row, column), of images (B, H, W, C).
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
    need("patches", &[(rows.len(), n), (usize::from(tiled && whole), 1)])?;
    let (h, w, c) = (height as u32, width as u32, channels as u32);
    // SAFETY: patches tile the images, so that both have n elements.
    unsafe { on.launch_over("pauc_patches", n, args![n, images, h, w, c, patch as u32, rows]) }
}

/// Tokens with positions added; the class token, if there is one, stands before the patches of each image.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn assemble(
    on: &Context,
    patches: View<'_>,
    token: Option<&Buffer>,
    positions: &Buffer,
    shape: Tokens,
    x: ViewMut<'_>,
) -> Result<()> {
    let Tokens { batch, tokens, width, .. } = shape;
    let of_patches = batch * (tokens - usize::from(token.is_some())) * width;
    let of_token = token.map_or(width, Buffer::len);
    need(
        "tokens",
        &[
            (patches.len(), of_patches),
            (of_token, width),
            (positions.len(), tokens * width),
            (x.len(), shape.len()),
        ],
    )?;
    let token = token.map_or(0, Buffer::address);
    let args = args![shape.len(), patches, token, positions, tokens as u32, width as u32, x];
    // SAFETY: all lengths were checked; an absent token is address 0, which the kernel leaves alone.
    unsafe { on.launch_over("pauc_tokens", shape.len(), args) }
}

/// The gradients of [`assemble`]: those of positions and class token are added to.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn assemble_gradient(
    on: &Context,
    g: View<'_>,
    shape: Tokens,
    d_positions: &mut Buffer,
    d_token: Option<&mut Buffer>,
    d_patches: ViewMut<'_>,
) -> Result<()> {
    let Tokens { batch, tokens, width, .. } = shape;
    let first = usize::from(d_token.is_some());
    let of_token = d_token.as_ref().map_or(width, |t| t.len());
    need(
        "gradient of tokens",
        &[
            (g.len(), shape.len()),
            (d_positions.len(), tokens * width),
            (of_token, width),
            (d_patches.len(), batch * (tokens - first) * width),
        ],
    )?;
    let token = d_token.map_or(0, |t| t.address());
    let (b, t, w) = (batch as u32, tokens as u32, width as u32);
    let args = args![tokens * width, g, b, t, w, d_positions, token, d_patches];
    // SAFETY: all lengths were checked; an absent token is address 0, which the kernel leaves alone.
    unsafe { on.launch_over("pauc_tokens_gradient", tokens * width, args) }
}

/// The first token of each image, or the mean of its tokens.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn pool(on: &Context, x: View<'_>, shape: Tokens, mean: bool, y: ViewMut<'_>) -> Result<()> {
    let n = shape.batch * shape.width;
    need("pool of tokens", &[(x.len(), shape.len()), (y.len(), n)])?;
    let args = args![n, x, shape.tokens as u32, shape.width as u32, mean, y];
    // SAFETY: both lengths were checked.
    unsafe { on.launch_over("pauc_pool_tokens", n, args) }
}

/// `g ←` the gradient of [`pool`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn pool_gradient(on: &Context, dy: View<'_>, shape: Tokens, mean: bool, g: ViewMut<'_>) -> Result<()> {
    let n = shape.len();
    need("gradient of the pool of tokens", &[(g.len(), n), (dy.len(), shape.batch * shape.width)])?;
    let args = args![n, dy, shape.tokens as u32, shape.width as u32, mean, g];
    // SAFETY: both lengths were checked.
    unsafe { on.launch_over("pauc_pool_tokens_gradient", n, args) }
}
