//! Procedural images of shapes.

use super::{names, splits};
use crate::MemoryImages;
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::rng::{Purpose, Stream, stream};
use pauc_traits::{Count, Dataset, Error, ImageShape, Result, component};
use rand::Rng;
use rayon::prelude::*;
use std::f32::consts::{PI, TAU};

component! {
    /// Procedural RGB images of shapes, for tests and quick trials without files.
    ///
    /// Each image shows one shape at a random position, angle, size and color, on a background of another
    /// random color with a gradient and noise. The label is the shape; the fine label is the shape with its
    /// texture (plain, stripes, checks). Color and position are independent of both, so pixels alone are a
    /// weak baseline, while a network that learns contours can separate the shapes. There are a fifth as many
    /// test images, from separate random streams.
    pub struct Shapes: Dataset {
        /// The number of training images.
        pub count: Count = Count::lit(5000),
        /// Height and width in pixels, at least 8.
        pub size: Count = Count::lit(32),
        /// The number of shapes, at most 8, in this order: disc, square, triangle, cross, ring, star, bar,
        /// crescent.
        pub classes: Count = Count::lit(8),
        /// The seed of the images. It is not the run's seed, so runs with different seeds see the same data.
        pub seed: u64 = 0,
    }
}

const SHAPES: [&str; 8] = ["disc", "square", "triangle", "cross", "ring", "star", "bar", "crescent"];
const TEXTURES: u32 = 3;

/// The largest number of training images.
const MAX_COUNT: usize = 1 << 20;

impl Dataset for Shapes {
    fn open(&self, place: &Place) -> Result<Splits> {
        let (classes, size) = (self.classes.get(), self.size.get());
        if classes > SHAPES.len() {
            return Err(Error::config(format!("Shapes: classes is at most {}, got {classes}", SHAPES.len())));
        }
        if !(8..=1024).contains(&size) {
            return Err(Error::config(format!("Shapes: size is from 8 to 1024, got {size}")));
        }
        if self.count.get() > MAX_COUNT {
            return Err(Error::config(format!("Shapes: count is at most {MAX_COUNT}, got {}", self.count)));
        }
        self.check_memory(place)?;
        let (train, test) =
            (self.images(self.count.get(), 0)?, self.images(self.count.get().div_ceil(5), 1)?);
        let description = format!(
            "Shapes: {} training and {} test images, {size}×{size}×3, seed {}",
            self.count,
            self.count.get().div_ceil(5),
            self.seed
        );
        Ok(splits(train, Some(test), names(&SHAPES[..classes]), description))
    }
}

impl Shapes {
    /// Checks that the images of both splits fit into memory.
    fn check_memory(&self, place: &Place) -> Result<()> {
        let (count, size) = (self.count.get() as u64, self.size.get() as u64);
        let bytes = (count + count.div_ceil(5)) * size * size * 3;
        let Some(most) = place.memory.filter(|most| bytes > *most) else { return Ok(()) };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Err(Error::config(format!(
            "Shapes: the images need {:.1} MiB of memory, but there are {:.1} MiB; lower count or size",
            mib(bytes),
            mib(most)
        )))
    }

    /// Draws the images of split `split`. Labels cycle through the shapes, then through the textures.
    fn images(&self, count: usize, split: u64) -> Result<MemoryImages> {
        let (size, classes) = (self.size.get(), self.classes.get() as u32);
        let shape = ImageShape { height: size, width: size, channels: 3 };
        let label = |i: usize| i as u32 % classes;
        let fine = |i: usize| label(i) * TEXTURES + i as u32 / classes % TEXTURES;
        let mut pixels = vec![0; count * shape.len()];
        pixels.par_chunks_exact_mut(shape.len()).enumerate().for_each(|(i, pixels)| {
            let mut rng = stream(self.seed, Purpose::Data, split, i as u64, 0);
            draw(label(i), fine(i) % TEXTURES, size, pixels, &mut rng);
        });
        let images = MemoryImages::new(shape, pixels, Some((0..count).map(label).collect()))?;
        images.with_other_labels((0..count).map(fine).collect())
    }
}

/// Whether the point (u, v) is inside the shape, which fills most of the unit circle.
fn inside(shape: u32, u: f32, v: f32) -> bool {
    let r = u.hypot(v);
    match shape {
        0 => r < 0.8,
        1 => u.abs().max(v.abs()) < 0.7,
        // The edges of the regular triangle have distance ½ from the center.
        2 => (0..3).all(|i| {
            let a = TAU * i as f32 / 3.0;
            u * a.cos() + v * a.sin() < 0.5
        }),
        3 => u.abs().min(v.abs()) < 0.25 && u.abs().max(v.abs()) < 0.9,
        4 => (0.5..0.9).contains(&r),
        5 => {
            let a = (v.atan2(u) / TAU * 5.0).rem_euclid(1.0) - 0.5;
            r < 0.4 + 1.2 * (0.5 - a.abs())
        }
        6 => u.abs() < 0.95 && v.abs() < 0.3,
        _ => r < 0.9 && (u - 0.45).hypot(v) > 0.65,
    }
}

fn draw(shape: u32, texture: u32, size: usize, pixels: &mut [u8], rng: &mut Stream) {
    let mut between = |low: f32, high: f32| low + (high - low) * rng.gen_range(0.0f32..1.0);
    let radius = size as f32 * between(0.26, 0.42);
    let room = size as f32 / 2.0 - radius * 0.9;
    let (x0, y0) = (size as f32 / 2.0 + between(-room, room), size as f32 / 2.0 + between(-room, room));
    let (sin, cos) = between(0.0, TAU).sin_cos();
    let mut color = || [(); 3].map(|()| between(30.0, 225.0));
    let ground = color();
    // Draws up to nine colors until one differs enough from the background; then shifts the background color
    // instead.
    let distance = |a: &[f32; 3]| a.iter().zip(&ground).map(|(a, b)| (a - b).abs()).sum::<f32>();
    let mut figure = color();
    for _ in 0..8 {
        if distance(&figure) > 150.0 {
            break;
        }
        figure = color();
    }
    if distance(&figure) <= 150.0 {
        figure = ground.map(|g| if g < 128.0 { g + 90.0 } else { g - 90.0 });
    }
    let slope = [(); 2].map(|()| between(-30.0, 30.0));
    let phase = between(0.0, TAU);
    let frequency = PI * between(4.0, 5.0);
    let texture_at = |u: f32, v: f32| match texture {
        0 => 1.0,
        1 if (u * frequency + phase).sin() > 0.0 => 1.0,
        2 if (u * frequency + phase).sin() * (v * frequency + phase).sin() > 0.0 => 1.0,
        _ => 0.4,
    };
    const SUB: usize = 3; // samples per pixel and direction
    for (p, pixel) in pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (x, y) = ((p % size) as f32, (p / size) as f32);
        // The fraction of the pixel that the figure covers, times the texture; 0 far from the figure.
        let near = ((x + 0.5 - x0).hypot(y + 0.5 - y0) - 1.0) / radius < 1.0;
        let mut strength = 0.0;
        for s in (0..SUB * SUB).take_while(|_| near) {
            let part = |i: usize| (i as f32 + 0.5) / SUB as f32;
            let (dx, dy) = ((x + part(s % SUB) - x0) / radius, (y + part(s / SUB) - y0) / radius);
            let (u, v) = (dx * cos + dy * sin, dy * cos - dx * sin);
            if inside(shape, u, v) {
                strength += texture_at(u, v) / (SUB * SUB) as f32;
            }
        }
        let light = slope[0] * (x / size as f32 - 0.5) + slope[1] * (y / size as f32 - 0.5);
        for c in 0..3 {
            let value = ground[c] * (1.0 - strength) + figure[c] * strength + light;
            // The sum of three uniform numbers approximates a Gaussian of standard deviation 10.
            let noise = (0..3).map(|_| rng.gen_range(-10.0f32..10.0)).sum::<f32>();
            pixel[c] = (value + noise).round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::tolerance;

    fn open(count: usize, classes: usize, seed: u64) -> Splits {
        let count = Count::try_from(count).unwrap();
        let classes = Count::try_from(classes).unwrap();
        Shapes { count, size: Count::lit(32), classes, seed }.open(&Place::at(".")).unwrap()
    }

    #[test]
    fn images_depend_on_the_seed_and_labels_are_balanced() {
        let (a, b, c) = (open(48, 8, 1), open(48, 8, 1), open(48, 8, 2));
        let pixels = |s: &Splits, i| s.train.image(i).unwrap().into_owned();
        assert_eq!(pixels(&a, 5), pixels(&b, 5));
        assert_ne!(pixels(&a, 5), pixels(&c, 5));
        assert_ne!(pixels(&a, 0), a.test.as_ref().unwrap().image(0).unwrap());
        let (coarse, fine) = (a.train.labels().unwrap(), a.train.fine_labels().unwrap());
        assert!((0..24).all(|l| fine.iter().filter(|f| **f == l).count() == 2));
        assert!(coarse.iter().zip(fine).all(|(c, f)| *c == f / 3));
        assert_eq!((a.classes.len(), a.test.unwrap().len()), (8, 10));
        let shapes = |classes, size| Shapes { count: Count::lit(1), size, classes, seed: 0 };
        assert!(shapes(Count::lit(9), Count::lit(32)).open(&Place::at(".")).is_err());
        assert!(shapes(Count::lit(8), Count::lit(7)).open(&Place::at(".")).is_err());
    }

    /// Returns the fraction of test images whose nearest class mean, by `features`, is that of their own
    /// class.
    fn nearest_mean(splits: &Splits, classes: usize, features: impl Fn(&[u8]) -> Vec<f64>) -> f64 {
        let labeled = |s: &dyn pauc_traits::dataset::ImageSource| -> Vec<(usize, Vec<f64>)> {
            let label = |i: usize| s.labels().unwrap()[i] as usize;
            (0..s.len()).map(|i| (label(i), features(&s.image(i).unwrap().pixels))).collect()
        };
        let (train, test) = (labeled(&*splits.train), labeled(&**splits.test.as_ref().unwrap()));
        let width = train[0].1.len();
        let mut means = vec![vec![0.0; width]; classes];
        train.iter().for_each(|(l, f)| means[*l].iter_mut().zip(f).for_each(|(m, f)| *m += f));
        means.iter_mut().flatten().for_each(|m| *m /= (train.len() / classes) as f64);
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let hit = |(l, f): &&(usize, Vec<f64>)| {
            let best =
                (0..classes).min_by(|a, b| distance(&means[*a], f).total_cmp(&distance(&means[*b], f)));
            best == Some(*l)
        };
        test.iter().filter(hit).count() as f64 / test.len() as f64
    }

    /// Returns the histogram of distances of the figure's pixels from its center of mass, in units of its
    /// spread. It is invariant to color, position, angle and size.
    fn rings(pixels: &[u8]) -> Vec<f64> {
        let color = |x: usize, y: usize| [0, 1, 2].map(|c| f64::from(pixels[(y * 32 + x) * 3 + c]));
        let mut corner = [0.0; 3];
        let border = (0..32).flat_map(|i| [(i, 0), (i, 31), (0, i), (31, i)]);
        border.for_each(|(x, y)| corner.iter_mut().zip(color(x, y)).for_each(|(s, v)| *s += v / 128.0));
        let weight = |x, y| {
            let d: f64 = color(x, y).iter().zip(&corner).map(|(a, b)| (a - b).abs()).sum();
            (d > 75.0).then_some((x as f64, y as f64))
        };
        let points: Vec<(f64, f64)> = (0..1024).filter_map(|i| weight(i % 32, i / 32)).collect();
        let n = points.len().max(1) as f64;
        let (cx, cy) = points.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x / n, b + y / n));
        let radii: Vec<f64> = points.iter().map(|(x, y)| (x - cx).hypot(y - cy)).collect();
        let spread = (radii.iter().map(|r| r * r).sum::<f64>() / n).sqrt().max(1e-9);
        let mut rings = vec![0.0; 12];
        radii.iter().for_each(|r| rings[((r / spread * 6.0) as usize).min(11)] += 1.0 / n);
        rings
    }

    #[test]
    fn contours_separate_shapes_and_pixels_do_not() {
        // Disc, square, triangle, cross, ring: chance is 1/5.
        let splits = open(2000, 5, 3);
        let pixels = nearest_mean(&splits, 5, |p| p.iter().map(|v| f64::from(*v)).collect());
        let contours = nearest_mean(&splits, 5, rings);
        let chance = 0.2 + tolerance::frequency(0.2, splits.test.as_ref().unwrap().len());
        assert!(pixels < chance, "{pixels}");
        // The value is 0.67. Each of the 400 images that `f32` rounding could flip counts for 0.0025.
        assert!(contours > 0.5, "{contours}");
    }
}
