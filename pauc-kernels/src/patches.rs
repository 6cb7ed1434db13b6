//! Convolutions whose windows do not overlap: the stride is the kernel's side. Each window becomes a row, and the
//! convolution a product of matrices.

use crate::threads::{self, Shared};

/// The input of such a convolution: maps without halo, (images, rows, columns, channels), and the side of the
/// windows. Rows and columns beyond the last whole window are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Images.
    pub batch: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Channels of a pixel.
    pub channels: usize,
    /// Rows and columns of a window.
    pub side: usize,
}

impl Patches {
    /// Returns the number of values of the maps.
    pub fn values(self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    /// Returns the number of windows.
    pub fn rows(self) -> usize {
        self.batch * self.down() * self.across()
    }

    /// Returns the number of values in a window.
    pub fn row(self) -> usize {
        self.side * self.line()
    }

    fn down(self) -> usize {
        self.height / self.side
    }

    fn across(self) -> usize {
        self.width / self.side
    }

    /// Returns the values in a line of a window.
    fn line(self) -> usize {
        self.side * self.channels
    }

    /// Returns the start of each line of pixels under a row of windows, and the start of that line in the first
    /// window.
    fn lines(self, row: usize) -> impl Iterator<Item = (usize, usize)> {
        let first = row / self.down() * self.height + row % self.down() * self.side;
        (0..self.side).map(move |y| ((first + y) * self.width * self.channels, y * self.line()))
    }

    /// Copies each window to a row, with its values in the order (row, column, channel).
    ///
    /// # Shapes
    /// x (images, rows, columns, channels) → rows (windows, side · side · channels)
    ///
    /// # Panics
    /// If a slice does not have its shape's length.
    pub fn gather(self, x: &[f32], rows: &mut [f32]) {
        assert_eq!((x.len(), rows.len()), (self.values(), self.rows() * self.row()), "{self:?}");
        let (len, rows) = (self.across() * self.row(), Shared::new(rows));
        threads::for_each(self.batch * self.down(), |i| {
            // SAFETY: portions are different windows.
            let windows = unsafe { rows.part(i * len..(i + 1) * len) };
            for (from, to) in self.lines(i) {
                let line = x[from..].chunks_exact(self.line());
                for (window, line) in windows.chunks_exact_mut(self.row()).zip(line) {
                    window[to..to + self.line()].copy_from_slice(line);
                }
            }
        });
    }

    /// Copies rows back to their windows; pixels outside of all windows become zero.
    ///
    /// # Shapes
    /// rows (windows, side · side · channels) → x (images, rows, columns, channels)
    ///
    /// # Panics
    /// If a slice does not have its shape's length.
    pub fn scatter(self, rows: &[f32], x: &mut [f32]) {
        assert_eq!((x.len(), rows.len()), (self.values(), self.rows() * self.row()), "{self:?}");
        let image = self.height * self.width * self.channels;
        let x = Shared::new(x);
        threads::for_each(self.batch, |i| {
            // SAFETY: portions are different images.
            let x = unsafe { x.part(i * image..(i + 1) * image) };
            if !self.height.is_multiple_of(self.side) || !self.width.is_multiple_of(self.side) {
                x.fill(0.0);
            }
            for row in i * self.down()..(i + 1) * self.down() {
                let windows = &rows[row * self.across() * self.row()..];
                for (to, from) in self.lines(row) {
                    let line = x[to - i * image..].chunks_exact_mut(self.line()).take(self.across());
                    for (line, window) in line.zip(windows.chunks_exact(self.row())) {
                        line.copy_from_slice(&window[from..from + self.line()]);
                    }
                }
            }
        });
    }

    /// Returns the place of each value of a row among the weights of an output, which are in the order (channel,
    /// row, column).
    fn places(self) -> impl Iterator<Item = usize> {
        let area = self.side * self.side;
        (0..self.row()).map(move |i| i % self.channels * area + i / self.channels)
    }

    /// Copies weights to the order of the rows.
    ///
    /// # Shapes
    /// weight (outputs, channels, side, side) → packed (outputs, side · side · channels)
    ///
    /// # Panics
    /// If the lengths differ, or are not those of outputs.
    pub fn pack(self, weight: &[f32], packed: &mut [f32]) {
        assert!(weight.len() == packed.len() && weight.len().is_multiple_of(self.row()), "{self:?}");
        for (packed, weight) in packed.chunks_exact_mut(self.row()).zip(weight.chunks_exact(self.row())) {
            packed.iter_mut().zip(self.places()).for_each(|(p, place)| *p = weight[place]);
        }
    }

    /// Adds values in the order of the rows to weights.
    ///
    /// # Shapes
    /// packed (outputs, side · side · channels), weight (outputs, channels, side, side)
    ///
    /// # Panics
    /// If the lengths differ, or are not those of outputs.
    pub fn add_unpacked(self, packed: &[f32], weight: &mut [f32]) {
        assert!(weight.len() == packed.len() && weight.len().is_multiple_of(self.row()), "{self:?}");
        for (packed, weight) in packed.chunks_exact(self.row()).zip(weight.chunks_exact_mut(self.row())) {
            packed.iter().zip(self.places()).for_each(|(p, place)| weight[place] += p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_become_rows_and_return() {
        for (height, width, side) in [(4, 6, 2), (5, 7, 2), (8, 9, 4), (3, 3, 1), (3, 5, 3)] {
            let p = Patches { batch: 3, height, width, channels: 5, side };
            let x: Vec<f32> = (1..=p.values()).map(|i| i as f32).collect();
            let mut rows = vec![0.0; p.rows() * p.row()];
            p.gather(&x, &mut rows);
            let (down, across) = (height / side, width / side);
            for (i, got) in rows.iter().enumerate() {
                let (window, place) = (i / p.row(), i % p.row());
                let (image, wy, wx) = (window / (down * across), window / across % down, window % across);
                let (ky, kx, c) = (place / (side * 5), place / 5 % side, place % 5);
                let pixel = (image * height + wy * side + ky) * width + wx * side + kx;
                assert_eq!(*got, x[pixel * 5 + c], "{p:?}, {i}");
            }
            let mut back = vec![f32::NAN; x.len()];
            p.scatter(&rows, &mut back);
            for (i, (back, x)) in back.iter().zip(&x).enumerate() {
                let inside = i / (5 * width) % height < down * side && i / 5 % width < across * side;
                assert_eq!(*back, if inside { *x } else { 0.0 }, "{p:?}, {i}");
            }
        }
    }

    #[test]
    fn weights_change_their_order_and_return() {
        let p = Patches { batch: 1, height: 2, width: 2, channels: 3, side: 2 };
        let weight: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut packed = vec![0.0; 24];
        p.pack(&weight, &mut packed);
        // Output 1, row 1, column 0, channel 2.
        assert_eq!(packed[12 + 6 + 2], weight[12 + 2 * 4 + 2]);
        let mut sum = weight.clone();
        p.add_unpacked(&packed, &mut sum);
        assert!(sum.iter().zip(&weight).all(|(s, w)| *s == 2.0 * w));
    }
}
