//! Softmax regression on rows that stay in device memory: losses with their gradients, and hits. Products go
//! through cuBLAS, one tile at a time; sums over tiles are in `f64`.

use crate::kernel_args::{In, Out, args};
use crate::matmul::{MatrixRef, product};
use crate::rows::column_sums;
use crate::{Buffer, Context, Error, Result, View};
use cudarc::driver::{CudaSlice, CudaView};
use std::ops::Range;
use std::rc::Rc;

/// Elements per tile of logits: 64 MiB.
const TILE: usize = 1 << 24;

/// Labeled rows. The weights of a model are C rows of D, then C biases.
#[derive(Debug)]
pub struct Regression {
    on: Rc<Context>,
    rows: Buffer,
    labels: CudaSlice<u32>,
    count: usize,
    dim: usize,
    classes: usize,
}

/// Rows that are processed together.
struct Tile<'a> {
    /// The row numbers.
    range: Range<usize>,
    /// (count, D)
    rows: MatrixRef<'a>,
    labels: CudaView<'a, u32>,
}

impl Regression {
    /// Copies rows of `dim` values to the device, each with a label below `classes`.
    ///
    /// # Shapes
    /// `rows` (N, D), `labels` N
    ///
    /// # Errors
    /// If lengths disagree, a label is too large, or the device is out of memory.
    pub fn new(on: &Rc<Context>, rows: &[f32], dim: usize, labels: &[u32], classes: usize) -> Result<Self> {
        let count = labels.len();
        let large = labels.iter().any(|l| *l as usize >= classes);
        if dim == 0 || count == 0 || rows.len() != count * dim || classes > u32::MAX as usize || large {
            let message = format!(
                "{} values and {count} labels are not rows of {dim} with labels below {classes}",
                rows.len()
            );
            return Err(Error::Length { operation: "regression", message });
        }
        let (on, rows) = (on.clone(), Buffer::from_host(on, rows)?);
        let labels = on.device().htod_sync_copy(labels)?;
        Ok(Regression { on, rows, labels, count, dim, classes })
    }

    /// Returns Σ x·xᵀ over all rows.
    ///
    /// # Shapes
    /// → (D, D)
    ///
    /// # Errors
    /// If the device fails.
    pub fn scatter(&self) -> Result<Vec<f64>> {
        let (on, size) = (&*self.on, self.dim * self.dim);
        let (mut part, mut sums) = (Buffer::uninit(on, size)?, on.device().alloc_zeros::<f64>(size)?);
        for tile in self.tiles(0..self.count, TILE / self.dim) {
            product(on, tile.rows.t(), tile.rows, 0.0, part.view_mut())?;
            let args = args![size, In(&part), Out(&mut sums)];
            // SAFETY: `part` and `sums` were allocated with `size` elements.
            unsafe { on.launch_over("pauc_accumulate", size, args) }?;
        }
        on.download(&sums)
    }

    /// Returns Σ −log softmax(W·x + b), at each row's label, over a range of rows. Writes its gradient with
    /// respect to the weights to `gradient`.
    ///
    /// # Shapes
    /// weights and gradient C·D + C
    ///
    /// # Errors
    /// If the range is empty or ends after the last row, lengths disagree, or the device fails.
    pub fn loss(&self, rows: Range<usize>, weights: &[f32], gradient: &mut [f64]) -> Result<f64> {
        self.check(&rows, weights)?;
        let (on, classes, size) = (&*self.on, self.classes, self.dim * self.classes);
        if gradient.len() != weights.len() {
            let message = format!("{} gradient values for {} weights", gradient.len(), weights.len());
            return Err(Error::Length { operation: "gradient of a regression", message });
        }
        let weights = Buffer::from_host(on, weights)?;
        let tile_rows = self.tile_rows().min(rows.len());
        let mut logits = Buffer::uninit(on, tile_rows * classes)?;
        let mut losses = on.device().alloc_zeros::<f64>(rows.len())?;
        let (mut part, mut part_of_biases) = (Buffer::uninit(on, size)?, Buffer::uninit(on, classes)?);
        let mut sums = on.device().alloc_zeros::<f64>(size + classes)?;
        for tile in self.tiles(rows.clone(), tile_rows) {
            let bias = self.logits(&tile, &weights, &mut logits)?;
            let count = tile.range.len();
            let of_tile = losses.slice_mut(tile.range.start - rows.start..tile.range.end - rows.start);
            let args = args![Out(&mut logits), In(bias), In(tile.labels), classes as u32, Out(of_tile)];
            // SAFETY: one block for each of `count` rows. `logits` wrote as many rows of all classes; labels
            // and losses were sliced to as many. `new` has checked that labels are below `classes`.
            unsafe { on.launch("pauc_residuals", count, args) }?;
            let residuals = logits.view().first(count * classes);
            let by_class = MatrixRef::new(residuals, count, classes).t();
            product(on, by_class, tile.rows, 0.0, part.view_mut())?;
            part_of_biases.clear()?;
            column_sums(on, residuals, &mut part_of_biases)?;
            let weight_args = args![size, In(&part), Out(sums.slice_mut(..size))];
            // SAFETY: `part` was allocated with `size` elements, and the sums were sliced to `size`.
            unsafe { on.launch_over("pauc_accumulate", size, weight_args) }?;
            let bias_args = args![classes, In(&part_of_biases), Out(sums.slice_mut(size..))];
            // SAFETY: `part_of_biases` was allocated with `classes` elements, and as many sums follow those
            // of the weights.
            unsafe { on.launch_over("pauc_accumulate", classes, bias_args) }?;
        }
        gradient.copy_from_slice(&on.download(&sums)?);
        Ok(on.download(&losses)?.iter().sum())
    }

    /// Returns the number of rows in a range whose label has the largest logit, the first among equals.
    ///
    /// # Errors
    /// As [`Regression::loss`].
    pub fn right(&self, rows: Range<usize>, weights: &[f32]) -> Result<usize> {
        self.check(&rows, weights)?;
        let (on, classes) = (&*self.on, self.classes);
        let weights = Buffer::from_host(on, weights)?;
        let tile_rows = self.tile_rows().min(rows.len());
        let mut logits = Buffer::uninit(on, tile_rows * classes)?;
        let mut right = on.device().alloc_zeros::<u32>(rows.len())?;
        for tile in self.tiles(rows.clone(), tile_rows) {
            let bias = self.logits(&tile, &weights, &mut logits)?;
            let of_tile = right.slice_mut(tile.range.start - rows.start..tile.range.end - rows.start);
            let args = args![In(&logits), In(bias), In(tile.labels), classes as u32, Out(of_tile)];
            // SAFETY: one block for each row of the tile. `logits` wrote as many rows of all classes; labels
            // and hits were sliced to as many. `new` has checked that labels are below `classes`.
            unsafe { on.launch("pauc_right", tile.range.len(), args) }?;
        }
        Ok(on.download(&right)?.iter().map(|r| *r as usize).sum())
    }

    /// Returns the maximum number of rows whose logits fit into a tile.
    fn tile_rows(&self) -> usize {
        (TILE / self.classes).max(1)
    }

    fn check(&self, rows: &Range<usize>, weights: &[f32]) -> Result<()> {
        if rows.is_empty() || rows.end > self.count || weights.len() != (self.dim + 1) * self.classes {
            let (count, n) = (self.count, weights.len());
            let message = format!(
                "rows {rows:?} of {count} with {n} weights, for {} classes of {}",
                self.classes, self.dim
            );
            return Err(Error::Length { operation: "regression", message });
        }
        Ok(())
    }

    /// Splits a range of rows into tiles of at most `tile_rows` rows.
    fn tiles(&self, rows: Range<usize>, tile_rows: usize) -> impl Iterator<Item = Tile<'_>> {
        let tile_rows = tile_rows.max(1);
        rows.clone().step_by(tile_rows).map(move |start| {
            let range = start..rows.end.min(start + tile_rows);
            let (count, dim) = (range.len(), self.dim);
            let values = self.rows.view().part(start * dim, count * dim);
            Tile { rows: MatrixRef::new(values, count, dim), labels: self.labels.slice(range.clone()), range }
        })
    }

    /// Writes the logits of a tile without their biases, and returns the biases.
    fn logits<'w>(&self, tile: &Tile<'_>, weights: &'w Buffer, to: &mut Buffer) -> Result<View<'w>> {
        let (classes, size) = (self.classes, self.dim * self.classes);
        let matrix = MatrixRef::new(weights.view().first(size), classes, self.dim);
        product(&self.on, tile.rows, matrix.t(), 0.0, to.view_mut())?;
        Ok(weights.view().part(size, classes))
    }
}
