//! The last layer of a residual branch: y = x + f·s·(W·a + b), with a factor s on each channel (LayerScale) and a
//! factor f on each image (stochastic depth).

use crate::product::Packed;

/// The parameters of the last layer of a branch, and the factors on its output.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// The weight, (width, inputs).
    pub weight: &'a [f32],
    /// The bias, (width).
    pub bias: &'a [f32],
    /// The factor on each channel, (width); `None` means 1.
    pub scale: Option<&'a [f32]>,
    /// Factors on what the branch adds to each image, for stochastic depth; `None` means 1.
    pub paths: Option<Paths<'a>>,
}

/// Factors on the rows of each image.
#[derive(Clone, Copy, Debug)]
pub struct Paths<'a> {
    /// One for each image.
    pub factors: &'a [f32],
    /// The rows of an image.
    pub rows: usize,
}

/// The gradients of an [`Output`]'s parameters, with the same shapes.
#[derive(Debug)]
pub struct OutputGradients<'a> {
    /// That of [`Output::weight`].
    pub weight: &'a mut [f32],
    /// That of [`Output::bias`].
    pub bias: &'a mut [f32],
    /// That of [`Output::scale`].
    pub scale: Option<&'a mut [f32]>,
}

impl Paths<'_> {
    fn factor(&self, row: usize) -> f32 {
        self.factors[row / self.rows]
    }

    /// y ← x, with the rows of each image multiplied by its factor.
    pub(crate) fn multiply(&self, width: usize, x: &[f32], y: &mut [f32]) {
        let len = self.rows * width;
        for ((x, y), factor) in x.chunks(len).zip(y.chunks_mut(len)).zip(self.factors) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = factor * x);
        }
    }
}

impl Output<'_> {
    /// Checks the lengths of all parts for `rows` rows.
    ///
    /// # Panics
    /// If one of them is wrong.
    pub(crate) fn check(&self, inputs: usize, rows: usize) {
        let width = self.bias.len();
        assert_eq!(self.weight.len(), width * inputs, "a matrix of {width} × {inputs}");
        assert!(self.scale.is_none_or(|scale| scale.len() == width), "a factor for each of {width} channels");
        let images = self.paths.is_none_or(|p| p.factors.len() * p.rows == rows);
        assert!(images, "the number of factors is not that of images");
    }

    /// y ← x + f·s·(a·Wᵀ + b), where `packed` is Wᵀ and the first row has the number `first`. On this thread.
    ///
    /// # Shapes
    /// a (rows, inputs), x and y (rows, width)
    pub(crate) fn apply(&self, packed: &Packed, (a, x): (&[f32], &[f32]), first: usize, y: &mut [f32]) {
        let width = self.bias.len();
        y.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(self.bias));
        packed.multiply(a, true, y);
        for (row, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            let factor = self.paths.map_or(1.0, |p| p.factor(first + row));
            match self.scale {
                Some(scale) => {
                    y.iter_mut().zip(x).zip(scale).for_each(|((y, x), scale)| *y = x + factor * scale * *y);
                }
                None => y.iter_mut().zip(x).for_each(|(y, x)| *y = x + factor * *y),
            }
        }
    }

    /// scaled ← s·∂y, and sum ← sum + Σ ∂y over rows. On this thread.
    ///
    /// # Shapes
    /// ∂y and scaled (rows, width), sum (width)
    pub(crate) fn scale_gradient(&self, dy: &[f32], scaled: &mut [f32], sum: &mut [f32]) {
        let width = self.bias.len();
        for (scaled, dy) in scaled.chunks_exact_mut(width).zip(dy.chunks_exact(width)) {
            sum.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
            match self.scale {
                Some(scale) => {
                    scaled.iter_mut().zip(dy).zip(scale).for_each(|((to, dy), s)| *to = s * dy);
                }
                None => scaled.copy_from_slice(dy),
            }
        }
    }

    /// Adds to the gradients, given Σ ∂yᵀ·a and Σ ∂y over rows, both with the factors of images.
    ///
    /// With m = W·a + b, ∂W = s·∂y·aᵀ and ∂s = Σ ∂y·m = (∂y·aᵀ)·W + b·Σ ∂y.
    ///
    /// # Shapes
    /// products (width, inputs), of_y (width)
    pub(crate) fn add_gradients(&self, products: &[f32], of_y: &[f32], gradients: OutputGradients<'_>) {
        let inputs = self.weight.len() / self.bias.len();
        let rows = gradients.weight.chunks_exact_mut(inputs).zip(products.chunks_exact(inputs));
        for (j, (gradient, products)) in rows.enumerate() {
            let scale = self.scale.map_or(1.0, |scale| scale[j]);
            gradient.iter_mut().zip(products).for_each(|(d, p)| *d += scale * p);
            gradients.bias[j] += scale * of_y[j];
        }
        let Some(d_scale) = gradients.scale else { return };
        let rows = products.chunks_exact(inputs).zip(self.weight.chunks_exact(inputs));
        for (((d, of_y), bias), (products, weight)) in d_scale.iter_mut().zip(of_y).zip(self.bias).zip(rows) {
            let product: f64 = products.iter().zip(weight).map(|(p, w)| f64::from(*p) * f64::from(*w)).sum();
            *d += (product + f64::from(*bias) * f64::from(*of_y)) as f32;
        }
    }
}
