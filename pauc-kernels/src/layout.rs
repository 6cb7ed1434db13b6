//! Memory layouts of batches of feature maps.

use crate::threads::{self, Shared};
use std::ops::Range;

/// A batch of feature maps, channels last, in one slice. Each map may have a border of zeros, its halo, which
/// convolutions read instead of checking bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Images.
    pub batch: usize,
    /// Rows of an image, without halo.
    pub height: usize,
    /// Columns of an image, without halo.
    pub width: usize,
    /// Values from one pixel to its right neighbor: the channels, rounded up if kernels need that.
    pub pitch: usize,
    /// Rows above and columns left of the map.
    pub before: usize,
    /// Rows below the map.
    pub below: usize,
    /// Columns right of the map.
    pub right: usize,
}

impl Layout {
    /// A layout without halo.
    pub fn flat(batch: usize, height: usize, width: usize, pitch: usize) -> Self {
        Layout { batch, height, width, pitch, before: 0, below: 0, right: 0 }
    }

    /// A layout with `halo` zeros on all sides, and more below and right, so that the map in 4×4 tiles fits
    /// with its halo.
    pub fn haloed(batch: usize, height: usize, width: usize, pitch: usize, halo: usize) -> Self {
        let fill = |n: usize| halo + n.next_multiple_of(4) - n;
        Layout {
            before: halo,
            below: fill(height),
            right: fill(width),
            ..Layout::flat(batch, height, width, pitch)
        }
    }

    /// Returns the number of values from one row to the next.
    pub fn row(&self) -> usize {
        (self.before + self.width + self.right) * self.pitch
    }

    /// Returns the number of values from one image to the next.
    pub fn image(&self) -> usize {
        (self.before + self.height + self.below) * self.row()
    }

    /// Returns the number of values of the whole batch.
    pub fn len(&self) -> usize {
        self.batch * self.image()
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of rows of all images.
    pub fn rows(&self) -> usize {
        self.batch * self.height
    }

    /// Returns the number of pixels of all images.
    pub fn pixels(&self) -> usize {
        self.rows() * self.width
    }

    /// Returns the index of the first pixel of row `r` of [`Layout::rows`].
    pub fn row_at(&self, r: usize) -> usize {
        (r / self.height) * self.image()
            + (self.before + r % self.height) * self.row()
            + self.before * self.pitch
    }

    /// Writes zeros around the maps, without changing their pixels.
    ///
    /// # Shapes
    /// at least [`Layout::len`] values
    ///
    /// # Panics
    /// If the slice is shorter than the layout.
    pub fn clear_halo(&self, values: &mut [f32]) {
        let mut end = 0;
        for r in 0..self.rows() {
            let start = self.row_at(r);
            values[end..start].fill(0.0);
            end = start + self.width * self.pitch;
        }
        values[end..self.len()].fill(0.0);
    }

    /// The same layout with another number of images.
    pub fn with_batch(self, batch: usize) -> Self {
        Layout { batch, ..self }
    }
}

/// A pass over rows, called with the number of a portion and its rows.
pub(crate) type Then<'a> = &'a (dyn Fn(usize, Range<usize>) + Sync);

/// The rows of a batch of maps, in portions of whole bands. A band is a number of rows of one image; the last
/// band of an image may have fewer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portions {
    rows: usize,
    height: usize,
    band: usize,
    size: usize,
}

impl Portions {
    /// Creates portions of `size` bands of `band` rows.
    pub fn new(l: Layout, band: usize, size: usize) -> Self {
        Portions { rows: l.rows(), height: l.height, band, size }
    }

    /// Creates portions of about `pixels` pixels.
    pub fn of_pixels(l: Layout, pixels: usize) -> Self {
        Portions::new(l, 1, pixels.div_ceil(l.width))
    }

    fn all_bands(self) -> usize {
        self.rows / self.height * self.height.div_ceil(self.band)
    }

    /// Returns the number of portions.
    pub fn count(self) -> usize {
        self.all_bands().div_ceil(self.size)
    }

    /// Calls `then` for all portions.
    pub fn for_each(self, then: Then<'_>) {
        threads::for_each(self.count(), |i| then(i, self.rows(i)));
    }

    /// Returns the bands of portion `i`.
    pub fn bands(self, i: usize) -> Range<usize> {
        i * self.size..self.all_bands().min((i + 1) * self.size)
    }

    /// Returns the rows of portion `i`, in [`Layout::rows`].
    pub fn rows(self, i: usize) -> Range<usize> {
        let per_image = self.height.div_ceil(self.band);
        let start = |band: usize| band / per_image * self.height + band % per_image * self.band;
        let bands = self.bands(i);
        start(bands.start)..start(bands.end)
    }
}

/// Copies pixels between layouts of the same maps. Channels beyond the narrower pitch do not change.
///
/// # Shapes
/// each slice has at least [`Layout::len`] values
///
/// # Panics
/// If the maps differ or a slice is shorter than its layout.
pub fn copy_pixels((from, fl): (&[f32], Layout), (to, tl): (&mut [f32], Layout)) {
    assert_eq!((fl.batch, fl.height, fl.width), (tl.batch, tl.height, tl.width), "maps differ");
    let channels = fl.pitch.min(tl.pitch);
    for r in 0..fl.rows() {
        let (f, t) = (fl.row_at(r), tl.row_at(r));
        if fl.pitch == tl.pitch {
            to[t..t + fl.width * channels].copy_from_slice(&from[f..f + fl.width * channels]);
        } else {
            for x in 0..fl.width {
                let (f, t) = (f + x * fl.pitch, t + x * tl.pitch);
                to[t..t + channels].copy_from_slice(&from[f..f + channels]);
            }
        }
    }
}

/// Adds pixels to those of another layout of the same maps, which has the same pitch.
///
/// # Shapes
/// each slice has at least [`Layout::len`] values
///
/// # Panics
/// If maps or pitch differ, or a slice is shorter than its layout.
pub fn add_pixels((from, fl): (&[f32], Layout), (to, tl): (&mut [f32], Layout)) {
    let maps = |l: Layout| (l.batch, l.height, l.width, l.pitch);
    assert_eq!(maps(fl), maps(tl), "maps differ");
    assert!(from.len() >= fl.len() && to.len() >= tl.len(), "{fl:?} and {tl:?} exceed their slices");
    let (cut, to, width) = (Portions::of_pixels(fl, ADDED), Shared::new(to), fl.width * fl.pitch);
    threads::for_each(cut.count(), |i| {
        for r in cut.rows(i) {
            let (f, t) = (fl.row_at(r), tl.row_at(r));
            // SAFETY: portions are different rows of the maps, and rows of a layout are disjoint.
            let to = unsafe { to.part(t..t + width) };
            to.iter_mut().zip(&from[f..f + width]).for_each(|(to, from)| *to += from);
        }
    });
}

/// The approximate number of pixels that a portion of [`add_pixels`] adds.
const ADDED: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_haloed_map_has_room_for_whole_tiles() {
        let l = Layout::haloed(2, 7, 28, 16, 1);
        assert_eq!((l.row(), l.image()), (30 * 16, 10 * 30 * 16));
        assert_eq!(l.row_at(7), l.image() + l.row() + 16);
        assert_eq!(l.len(), 2 * 10 * 30 * 16);
    }

    #[test]
    fn portions_are_whole_bands_and_cover_every_row_once() {
        let l = Layout::flat(3, 6, 5, 16);
        let rows = |p: Portions| (0..p.count()).map(|i| p.rows(i)).collect::<Vec<_>>();
        assert_eq!(rows(Portions::new(l, 4, 1)), [0..4, 4..6, 6..10, 10..12, 12..16, 16..18]);
        assert_eq!(rows(Portions::new(l, 4, 4)), [0..12, 12..18]);
        assert_eq!(rows(Portions::new(l, 4, 5)), [0..16, 16..18]);
        assert_eq!(rows(Portions::of_pixels(l, 31)), [0..7, 7..14, 14..18]);
    }

    #[test]
    fn clearing_the_halo_keeps_the_pixels_only() {
        for l in [Layout::haloed(2, 3, 5, 16, 1), Layout::flat(2, 3, 5, 3), Layout::haloed(1, 4, 4, 16, 2)] {
            let (mut values, mut want) = (vec![1.0; l.len() + 7], vec![0.0; l.len()]);
            (0..l.rows()).for_each(|r| want[l.row_at(r)..][..l.width * l.pitch].fill(1.0));
            l.clear_halo(&mut values);
            assert_eq!(values, [want, vec![1.0; 7]].concat());
        }
    }

    #[test]
    fn pixels_survive_a_round_trip() {
        let (flat, halo) = (Layout::flat(2, 3, 5, 3), Layout::haloed(2, 3, 5, 16, 1));
        let original: Vec<f32> = (0..flat.len()).map(|i| i as f32).collect();
        let mut haloed = vec![0.0; halo.len()];
        copy_pixels((&original, flat), (&mut haloed, halo));
        assert_eq!(haloed.iter().sum::<f32>(), original.iter().sum::<f32>());
        let mut returned = vec![0.0; flat.len()];
        copy_pixels((&haloed, halo), (&mut returned, flat));
        assert_eq!(returned, original);
    }

    #[test]
    fn pixels_are_added_and_the_halo_stays() {
        let (flat, halo) = (Layout::flat(2, 3, 5, 16), Layout::haloed(2, 3, 5, 16, 1));
        let original: Vec<f32> = (0..flat.len()).map(|i| i as f32).collect();
        let (mut haloed, mut sums) = (vec![0.0; halo.len()], original.clone());
        copy_pixels((&original, flat), (&mut haloed, halo));
        let border = haloed.iter().filter(|v| **v == 0.0).count();
        add_pixels((&original, flat), (&mut haloed, halo));
        add_pixels((&haloed, halo), (&mut sums, flat));
        assert!(sums.iter().zip(&original).all(|(sum, v)| *sum == 3.0 * v));
        assert_eq!(haloed.iter().filter(|v| **v == 0.0).count(), border);
    }
}
