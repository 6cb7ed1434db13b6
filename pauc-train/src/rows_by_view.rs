//! The outputs of a batch by view, collected from its parts.

use dfdx::prelude::HasShape;
use pauc_models::device::NetworkDevice;
use pauc_models::network::TapedRows;
use pauc_traits::Result;
use pauc_traits::ops::{self, Matrix};
use std::ops::Range;

/// Rows of all samples by view, (B, D) each; views that are not read are `None`.
pub(crate) type RowsByView<D> = Vec<Option<Matrix<f32, D>>>;

/// Rows of all samples by view, gathered on the host from the parts of a batch.
#[derive(Clone)]
pub(crate) struct HostRows {
    views: Vec<Option<Vec<f32>>>,
    /// Samples B and width D.
    shape: (usize, usize),
}

impl HostRows {
    /// Allocates (B, D) rows for the views that are read, out of `views`.
    pub fn new(views: usize, read: &[usize], shape: (usize, usize)) -> Self {
        let room = |view| read.contains(&view).then(|| vec![0.0; shape.0 * shape.1]);
        HostRows { views: (0..views).map(room).collect(), shape }
    }

    /// Copies the outputs of a part, view after view, to their rows.
    pub fn put(&mut self, read: &[usize], part: &Range<usize>, outputs: &[f32]) {
        let dim = self.shape.1;
        for (view, rows) in read.iter().zip(outputs.chunks_exact(part.len() * dim)) {
            if let Some(all) = &mut self.views[*view] {
                all[part.start * dim..part.end * dim].copy_from_slice(rows);
            }
        }
    }

    /// Copies outputs, view after view, to rows in any order.
    pub fn scatter(&mut self, read: &[usize], rows: &[usize], outputs: &[f32]) {
        let dim = self.shape.1;
        for (view, outputs) in read.iter().zip(outputs.chunks_exact(rows.len() * dim)) {
            if let Some(all) = &mut self.views[*view] {
                for (row, output) in rows.iter().zip(outputs.chunks_exact(dim)) {
                    all[row * dim..(row + 1) * dim].copy_from_slice(output);
                }
            }
        }
    }

    /// Appends the rows of some samples, view after view.
    pub fn append_to(&self, to: &mut Vec<f32>, read: &[usize], rows: &[usize]) {
        let dim = self.shape.1;
        for all in read.iter().filter_map(|view| self.views[*view].as_ref()) {
            rows.iter().for_each(|row| to.extend_from_slice(&all[row * dim..(row + 1) * dim]));
        }
    }

    /// Returns the number of values of some samples in the views that are read.
    pub fn len_of(&self, read: &[usize], rows: usize) -> usize {
        read.len() * rows * self.shape.1
    }

    /// Returns the rows of a view, row-major; empty if it is not read.
    pub fn view(&self, view: usize) -> &[f32] {
        self.views[view].as_deref().unwrap_or_default()
    }

    /// Returns a copy of the rows of each view.
    pub fn to_views(&self) -> Vec<Option<Vec<f32>>> {
        self.views.clone()
    }

    /// Returns the rows as constants on a device.
    pub fn upload<D: NetworkDevice>(self, device: &D) -> RowsByView<D> {
        let shape = self.shape;
        let upload = |rows: Option<Vec<f32>>| rows.map(|rows| ops::constant(device, rows, shape));
        self.views.into_iter().map(upload).collect()
    }
}

/// Splits a branch's outputs, which are stacked by view, and drops their tape. They stay on a device with its
/// own memory.
///
/// # Shapes
/// rows (V·B, D) for the V views that are read → (B, D) each
///
/// # Errors
/// If the device fails.
pub(crate) fn split_views<D: NetworkDevice>(
    device: &D,
    rows: &TapedRows<D>,
    views: usize,
    read: &[usize],
) -> Result<RowsByView<D>> {
    let (stacked, dim) = *rows.shape();
    let samples = stacked / read.len().max(1);
    if D::HAS_OWN_MEMORY {
        let all = rows.retaped();
        let place = |view: usize| read.iter().position(|r| *r == view);
        let rows_of = |i: usize| device.rows(&all, i * samples..(i + 1) * samples);
        return (0..views).map(|view| place(view).map(rows_of).transpose()).collect();
    }
    let mut host = HostRows::new(views, read, (samples, dim));
    host.put(read, &(0..samples), &ops::to_host(rows)?);
    Ok(host.upload(device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::Cpu;

    #[test]
    fn parts_of_a_batch_come_together_by_view() {
        // Two samples of width 2 in views 2 and 0, one sample after the other.
        let mut rows = HostRows::new(3, &[2, 0], (2, 2));
        rows.put(&[2, 0], &(1..2), &[5.0, 6.0, 7.0, 8.0]);
        rows.put(&[2, 0], &(0..1), &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(rows.view(2), [1.0, 2.0, 5.0, 6.0]);
        assert_eq!(rows.view(0), [3.0, 4.0, 7.0, 8.0]);
        assert!(rows.view(1).is_empty());
        rows.scatter(&[2], &[1, 0], &[9.0, 10.0, 11.0, 12.0]);
        assert_eq!(rows.view(2), [11.0, 12.0, 9.0, 10.0]);
        let mut appended = Vec::new();
        rows.append_to(&mut appended, &[2, 0], &[1]);
        assert_eq!(appended, [9.0, 10.0, 7.0, 8.0]);
        assert_eq!(rows.len_of(&[2, 0], 1), 4);
        let matrices = rows.upload(&Cpu::default());
        assert!(matrices[1].is_none());
        assert_eq!(matrices[0].as_ref().map(|m| m.as_vec()), Some(vec![3.0, 4.0, 7.0, 8.0]));
    }
}
