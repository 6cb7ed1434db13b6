//! Softmax regression on rows that stay in the device's memory: losses with their gradients, and hits. Products through cuBLAS,
//! tile by tile; sums over tiles in `f64`.

use crate::rows::{Factor, column_sums, product};
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::ops::Range;
use std::rc::Rc;

/// Elements of a tile of logits: 64 MiB.
const TILE: usize = 1 << 24;

/// Rows with their labels. The weights of a model are C rows of D, then C biases.
#[derive(Debug)]
pub struct Regression {
    on: Rc<Context>,
    rows: Buffer,
    labels: CudaSlice<u32>,
    count: usize,
    dim: usize,
    classes: usize,
}

/// Some rows that are looked at together, from number `start` on.
#[derive(Clone, Copy)]
struct Tile<'a> {
    start: usize,
    rows: Factor<'a>,
    count: usize,
    /// The address of their labels.
    labels: u64,
}

impl Regression {
    /// A copy of rows of `dim` values with a label below `classes` for each.
    ///
    /// # Errors
    /// If lengths disagree, a label is too large, or the device has not enough memory.
    pub fn new(on: &Rc<Context>, rows: &[f32], dim: usize, labels: &[u32], classes: usize) -> Result<Self> {
        let count = labels.len();
        let large = labels.iter().any(|l| *l as usize >= classes);
        if dim == 0 || count == 0 || rows.len() != count * dim || classes > u32::MAX as usize || large {
            let message =
                format!("{} values in rows of {dim} with {count} labels below {classes}", rows.len());
            return Err(Error::Length { operation: "regression", message });
        }
        let (on, rows) = (on.clone(), Buffer::from_host(on, rows)?);
        let labels = on.device().htod_sync_copy(labels)?;
        Ok(Regression { on, rows, labels, count, dim, classes })
    }

    /// What belongs to the rows' device.
    pub fn context(&self) -> &Context {
        &self.on
    }

    /// Σ x·xᵀ over all rows.
    ///
    /// # Shapes
    /// (D, D)
    ///
    /// # Errors
    /// If the device fails.
    pub fn scatter(&self) -> Result<Vec<f64>> {
        let (on, size) = (&*self.on, self.dim * self.dim);
        let (mut part, sums) = (Buffer::any(on, size)?, on.device().alloc_zeros::<f64>(size)?);
        for tile in self.tiles(0..self.count, TILE / self.dim) {
            product(on, tile.rows.t(), tile.rows, 0.0, part.view_mut())?;
            let args = args![size, &part, *sums.device_ptr()];
            // SAFETY: both have so many elements.
            unsafe { on.launch_over("pauc_accumulate", size, args) }?;
        }
        on.download(&sums)
    }

    /// Σ −log softmax(W·x + b), at each label, over a range of rows; its gradient with respect to the weights is written.
    ///
    /// # Shapes
    /// weights and gradient C·D + C
    ///
    /// # Errors
    /// If there are no such rows, lengths disagree, or the device fails.
    pub fn loss(&self, rows: Range<usize>, weights: &[f32], gradient: &mut [f64]) -> Result<f64> {
        self.check(&rows, weights)?;
        let (on, classes, size) = (&*self.on, self.classes, self.dim * self.classes);
        if gradient.len() != weights.len() {
            let message = format!("{} values for {} weights", gradient.len(), weights.len());
            return Err(Error::Length { operation: "gradient of a regression", message });
        }
        let weights = Buffer::from_host(on, weights)?;
        let most = self.most().min(rows.len());
        let mut products = Buffer::any(on, most * classes)?;
        let losses = on.device().alloc_zeros::<f64>(rows.len())?;
        let (mut part, mut biases) = (Buffer::any(on, size)?, Buffer::any(on, classes)?);
        let sums = on.device().alloc_zeros::<f64>(size + classes)?;
        for tile in self.tiles(rows.clone(), most) {
            let bias = self.multiply(tile, &weights, &mut products)?;
            let place = (tile.start - rows.start) * size_of::<f64>();
            let args =
                args![&products, bias, tile.labels, classes as u32, *losses.device_ptr() + place as u64];
            // SAFETY: there are so many rows of products with all classes, labels below their number, and losses.
            unsafe { on.launch("pauc_residuals", tile.count, args) }?;
            let residuals = products.view().first(tile.count * classes);
            let factor = Factor::new(residuals, tile.count, classes);
            product(on, factor.t(), tile.rows, 0.0, part.view_mut())?;
            biases.clear()?;
            column_sums(on, residuals, &mut biases)?;
            let of_biases = *sums.device_ptr() + (size * size_of::<f64>()) as u64;
            // SAFETY: the sums are of as many weights and, behind them, of as many biases.
            unsafe {
                on.launch_over("pauc_accumulate", size, args![size, &part, *sums.device_ptr()])?;
                on.launch_over("pauc_accumulate", classes, args![classes, &biases, of_biases])?;
            }
        }
        gradient.copy_from_slice(&on.download(&sums)?);
        Ok(on.download(&losses)?.iter().sum())
    }

    /// How many rows of a range have their largest logit, the first of equals, at their label.
    ///
    /// # Errors
    /// As [`Regression::loss`].
    pub fn right(&self, rows: Range<usize>, weights: &[f32]) -> Result<usize> {
        self.check(&rows, weights)?;
        let (on, classes) = (&*self.on, self.classes);
        let weights = Buffer::from_host(on, weights)?;
        let most = self.most().min(rows.len());
        let mut products = Buffer::any(on, most * classes)?;
        let right = on.device().alloc_zeros::<u32>(rows.len())?;
        for tile in self.tiles(rows.clone(), most) {
            let bias = self.multiply(tile, &weights, &mut products)?;
            let place = (tile.start - rows.start) * size_of::<u32>();
            let args =
                args![&products, bias, tile.labels, classes as u32, *right.device_ptr() + place as u64];
            // SAFETY: as in `loss`.
            unsafe { on.launch("pauc_right", tile.count, args) }?;
        }
        Ok(on.download(&right)?.iter().map(|r| *r as usize).sum())
    }

    /// The most rows whose logits make a tile.
    fn most(&self) -> usize {
        (TILE / self.classes).max(1)
    }

    fn check(&self, rows: &Range<usize>, weights: &[f32]) -> Result<()> {
        if rows.is_empty() || rows.end > self.count || weights.len() != (self.dim + 1) * self.classes {
            let (of, n) = (self.count, weights.len());
            let message =
                format!("rows {rows:?} of {of}, {n} weights for {} classes of {}", self.classes, self.dim);
            return Err(Error::Length { operation: "regression", message });
        }
        Ok(())
    }

    /// A range of rows, `most` of them at a time.
    fn tiles(&self, rows: Range<usize>, most: usize) -> impl Iterator<Item = Tile<'_>> {
        let most = most.max(1);
        rows.clone().step_by(most).map(move |start| {
            let (count, dim) = (most.min(rows.end - start), self.dim);
            let values = self.rows.view().part(start * dim, count * dim);
            let labels = *self.labels.device_ptr() + (start * size_of::<u32>()) as u64;
            Tile { start, rows: Factor::new(values, count, dim), count, labels }
        })
    }

    /// The products of some rows with the weights of all classes; returns the biases.
    fn multiply<'a>(&self, tile: Tile<'_>, weights: &'a Buffer, to: &mut Buffer) -> Result<View<'a>> {
        let (classes, size) = (self.classes, self.dim * self.classes);
        let matrix = Factor::new(weights.view().first(size), classes, self.dim);
        product(&self.on, tile.rows, matrix.t(), 0.0, to.view_mut())?;
        Ok(weights.view().part(size, classes))
    }
}
