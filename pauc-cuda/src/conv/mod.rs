//! Convolutions of feature maps (N, H, W, C), through cuDNN. Those with 1×1 kernels and stride 1 are matrix
//! products, through cuBLAS.
//!
//! | module | contents |
//! |---|---|
//! | `program` | a convolution set up in cuDNN |
//! | `scratch` | temporary memory of convolutions |

mod program;
mod scratch;

use crate::feature_map::{FeatureMap, MapShape, MapSlice, MapSliceMut};
use crate::kernel_args::{In, Out, args};
use crate::matmul::{MatrixRef, rounded_product};
use crate::norm::ScaledF16;
use crate::{Buffer, Context, Element, Error, Precision, Result};
use pauc_kernels::conv::Geometry;
use program::{Passes, Program};
use scratch::SplitSpace;

pub use scratch::Scratch;

/// A convolution of batches of one size. Weights are in the order (out, in, height, width).
#[derive(Debug)]
pub struct Convolution {
    /// `None` if the convolution is a matrix product.
    program: Option<Program>,
    /// The fp16 program for the gradient of the weights, if there is one.
    f16_program: Option<Program>,
    input: MapShape,
    output: MapShape,
    geometry: Geometry,
    precision: Precision,
    element: Element,
    /// The weights in cuDNN's order, (out, height, width, channels); `None` if they are given in it.
    filter: Option<FeatureMap>,
    /// Whether operands are split into TF32 parts.
    splits: bool,
}

/// Computes a product of two operands and adds it to beta times the output.
type Product<'a> = &'a mut dyn FnMut([MapSlice<'_>; 2], f32) -> Result<()>;

/// Sums the partial products of split operands, the smallest first. The product of both low parts is below
/// `f32` rounding and is left out. Only the first product uses `beta`, so the output's old values count once.
fn accumulate(
    on: &Context,
    space: &mut [SplitSpace; 2],
    splits: bool,
    [a, b]: [MapSlice<'_>; 2],
    beta: f32,
    product: Product<'_>,
) -> Result<()> {
    if !splits {
        return product([a, b], beta);
    }
    let [space_a, space_b] = space;
    let ([a_high, a_low], [b_high, b_low]) = (space_a.split(on, a)?, space_b.split(on, b)?);
    product([a_high, b_low], beta)?;
    product([a_low, b_high], 1.0)?;
    product([a_high, b_high], 1.0)
}

impl Convolution {
    /// Creates the convolution for maps of the geometry's size, with at least its channels.
    ///
    /// # Errors
    /// If cuDNN is missing or does not support the shape.
    pub fn new(on: &Context, g: Geometry, input: MapShape, precision: Precision) -> Result<Self> {
        let (height, width) = g.output();
        let output = MapShape { batch: input.batch, channels: g.outputs, height, width };
        if (input.height, input.width) != (g.height, g.width) || input.channels < g.inputs {
            let message = format!("expected a {}×{}×{} map, got {input:?}", g.height, g.width, g.inputs);
            return Err(Error::Length { operation: "convolution", message });
        }
        let element = Element::of(precision);
        let splits = Self::splits_operands(on, precision)?;
        let program = |input, kind, passes| Program::new(on.dnn()?, g, (input, output), kind, passes);
        let on_tensor_cores = precision != Precision::F32 || splits;
        let main_program = match Self::is_matmul(g) {
            true => None,
            false => Some(program(input, (element, on_tensor_cores), Passes::All)?),
        };
        let f16_program = match Self::has_f16_weight_gradient(g, precision) {
            true => Some(program(Self::f16_shape(input), (Element::F16, true), Passes::Weight)?),
            false => None,
        };
        // A filter with one weight per channel is the same in both orders.
        let is_in_order = g.kernel == 1 && input.channels == g.inputs && element == Element::F32;
        let filter = match is_in_order {
            true => None,
            false => {
                let len = g.outputs * g.kernel * g.kernel * input.channels;
                Some(FeatureMap::uninit(on, len, element)?)
            }
        };
        Ok(Convolution {
            program: main_program,
            f16_program,
            input,
            output,
            geometry: g,
            precision,
            element,
            filter,
            splits,
        })
    }

    /// Returns whether the convolution is a matrix product: a 1×1 kernel on every pixel.
    pub fn is_matmul(g: Geometry) -> bool {
        (g.kernel, g.stride, g.padding) == (1, 1, 0)
    }

    /// Returns whether [`Convolution::weight_gradient_f16`] computes the gradient of the weights.
    pub fn has_f16_weight_gradient(g: Geometry, precision: Precision) -> bool {
        precision == Precision::Tf32 && !Self::is_matmul(g)
    }

    /// Returns whether operands are split into two TF32 parts, each as large as the operand: if `f32` is
    /// asked for and tensor cores accept it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn splits_operands(on: &Context, precision: Precision) -> Result<bool> {
        Ok(precision == Precision::F32 && on.has_tf32()?)
    }

    /// Returns the shape of an input in fp16: tensor cores read eight channels at a time.
    pub fn f16_shape(input: MapShape) -> MapShape {
        MapShape { channels: input.channels.next_multiple_of(8), ..input }
    }

    /// Returns the shape of the input.
    pub fn input(&self) -> MapShape {
        self.input
    }

    /// Returns the shape of the input of [`Convolution::weight_gradient_f16`], if that computes the gradient.
    pub fn f16_input(&self) -> Option<MapShape> {
        self.f16_program.as_ref().map(|_| Self::f16_shape(self.input))
    }

    /// Returns an input or its gradient as a matrix (pixels, channels).
    fn input_matrix<'a>(&self, x: MapSlice<'a>) -> MatrixRef<'a> {
        MatrixRef::new(x, self.input.pixels(), self.input.channels)
    }

    /// Returns an output or its gradient as a matrix (pixels, channels).
    fn output_matrix<'a>(&self, y: MapSlice<'a>) -> MatrixRef<'a> {
        MatrixRef::new(y, self.output.pixels(), self.output.channels)
    }

    /// Returns the weights as a matrix (out, in).
    fn weight_matrix<'a>(&self, w: MapSlice<'a>) -> MatrixRef<'a> {
        MatrixRef::new(w, self.output.channels, self.input.channels)
    }

    fn check(&self, x: MapSlice<'_>, weights: usize, y: MapSlice<'_>) -> Result<()> {
        let elements = (self.input.check("convolution", &[x])?, self.output.check("convolution", &[y])?);
        if weights == self.geometry.weights() && elements == (self.element, self.element) {
            return Ok(());
        }
        let message =
            format!("expected {:?}, got {weights} weights and elements {elements:?}", self.geometry);
        Err(Error::Length { operation: "convolution", message })
    }

    /// Returns the cuBLAS precision of a convolution that is a matrix product. Split operands are TF32
    /// numbers already.
    fn matmul_precision(&self) -> Precision {
        if self.splits { Precision::Tf32 } else { self.precision }
    }

    /// `y ← w ∗ x`.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn forward(
        &mut self,
        on: &Context,
        scratch: &mut Scratch,
        x: MapSlice<'_>,
        w: &Buffer,
        mut y: MapSliceMut<'_>,
    ) -> Result<()> {
        self.check(x, w.len(), y.as_slice())?;
        self.convert_weights(on, w)?;
        let operands = [x.part(0, self.input.len()), self.weights(w)];
        let Some(program) = &self.program else {
            let precision = self.matmul_precision();
            return accumulate(on, &mut scratch.split, self.splits, operands, 0.0, &mut |[x, w], beta| {
                let (x, w) = (self.input_matrix(x), self.weight_matrix(w).t());
                rounded_product(on, precision, x, w, beta, y.reborrow())
            });
        };
        let workspace = scratch.workspace.at_least(on, program.workspace())?;
        accumulate(on, &mut scratch.split, self.splits, operands, 0.0, &mut |operands, beta| {
            // SAFETY: `check` has validated the maps. The weights are the `filter` that `new` made for the
            // program, or `check` has validated their number. The workspace has the program's size.
            unsafe { program.forward(workspace, operands, (y.reborrow(), beta)) }
        })
    }

    /// Returns the weights in cuDNN's order, as of the last [`Convolution::forward`].
    fn weights<'a>(&'a self, w: &'a Buffer) -> MapSlice<'a> {
        self.filter.as_ref().map_or_else(|| w.view().into(), FeatureMap::slice)
    }

    /// Writes the weights in cuDNN's order, unless they are given in it.
    fn convert_weights(&mut self, on: &Context, w: &Buffer) -> Result<()> {
        let Some(filter) = &mut self.filter else { return Ok(()) };
        let (g, channels, n) = (self.geometry, self.input.channels, filter.len());
        let (code, p) = (self.element.code(channels), (g.kernel * g.kernel) as u32);
        let args = args![code, n, g.inputs as u32, p, channels as u32, In(w), Out(filter.slice_mut())];
        // SAFETY: `check` has established that there are as many weights as the geometry has. `new` has
        // allocated the filter with `channels` elements for each output and kernel position.
        unsafe { on.launch_over("pauc_filter", n / self.element.pack(channels), args) }
    }

    /// `dx ←` the gradient of the input `+ beta·dx`, with the weights of the last [`Convolution::forward`].
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn input_gradient(
        &self,
        on: &Context,
        scratch: &mut Scratch,
        dy: MapSlice<'_>,
        w: &Buffer,
        (mut dx, beta): (MapSliceMut<'_>, f32),
    ) -> Result<()> {
        self.check(dx.as_slice(), w.len(), dy)?;
        let operands = [dy.part(0, self.output.len()), self.weights(w)];
        let Some(program) = &self.program else {
            let precision = self.matmul_precision();
            return accumulate(on, &mut scratch.split, self.splits, operands, beta, &mut |[dy, w], beta| {
                let (dy, w) = (self.output_matrix(dy), self.weight_matrix(w));
                rounded_product(on, precision, dy, w, beta, dx.reborrow())
            });
        };
        let workspace = scratch.workspace.at_least(on, program.workspace())?;
        accumulate(on, &mut scratch.split, self.splits, operands, beta, &mut |operands, beta| {
            // SAFETY: `check` has validated the maps. The weights are the `filter` that `new` made for the
            // program, or `check` has validated their number. The workspace has the program's size.
            unsafe { program.input_gradient(workspace, operands, (dx.reborrow(), beta)) }
        })
    }

    /// `dw ← dw +` the gradient of the weights.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn weight_gradient(
        &self,
        on: &Context,
        scratch: &mut Scratch,
        x: MapSlice<'_>,
        dy: MapSlice<'_>,
        dw: &mut Buffer,
    ) -> Result<()> {
        self.check(x, dw.len(), dy)?;
        let operands = [x.part(0, self.input.len()), dy.part(0, self.output.len())];
        let Some(program) = &self.program else {
            let precision = self.matmul_precision();
            return accumulate(on, &mut scratch.split, self.splits, operands, 1.0, &mut |[x, dy], beta| {
                let (dy, x) = (self.output_matrix(dy).t(), self.input_matrix(x));
                rounded_product(on, precision, dy, x, beta, dw.view_mut())
            });
        };
        let Scratch { workspace, gradient, split } = scratch;
        let workspace = workspace.at_least(on, program.workspace())?;
        let Some(filter) = &self.filter else {
            return accumulate(on, split, self.splits, operands, 1.0, &mut |operands, beta| {
                // SAFETY: `check` has validated the maps, and that dw has the geometry's weights, in the
                // filter's order.
                unsafe { program.weight_gradient(workspace, operands, (dw.view_mut().into(), [1.0, beta])) }
            });
        };
        let gradient = gradient.at_least(on, filter.len(), self.element)?;
        accumulate(on, split, self.splits, operands, 0.0, &mut |operands, beta| {
            // SAFETY: `check` has validated the maps. The gradient has at least as many elements as the
            // filter. The workspace has the program's size.
            unsafe { program.weight_gradient(workspace, operands, (gradient.slice_mut(), [1.0, beta])) }
        })?;
        self.add_filter_gradient(on, (gradient.slice(), self.input.channels), None, dw)
    }

    /// Like [`Convolution::weight_gradient`], from operands in fp16. The input has the shape
    /// [`Convolution::f16_input`].
    ///
    /// # Errors
    /// If lengths disagree, this convolution has no fp16 gradient, or the device fails.
    pub fn weight_gradient_f16(
        &self,
        on: &Context,
        scratch: &mut Scratch,
        x: MapSlice<'_>,
        dy: ScaledF16<'_>,
        dw: &mut Buffer,
    ) -> Result<()> {
        const OPERATION: &str = "gradient of weights in fp16";
        let (g, input) = (self.geometry, Self::f16_shape(self.input));
        let elements = (input.check(OPERATION, &[x])?, self.output.check(OPERATION, &[dy.values])?);
        let fits = elements == (Element::F16, Element::F16)
            && (dw.len(), dy.inverse_scale.len()) == (g.weights(), 1);
        let Some(program) = self.f16_program.as_ref().filter(|_| fits) else {
            let message = format!("expected {g:?}, got {} weights and elements {elements:?}", dw.len());
            return Err(Error::Length { operation: OPERATION, message });
        };
        let len = g.outputs * g.kernel * g.kernel * input.channels;
        let gradient = scratch.gradient.at_least(on, len, Element::F16)?;
        let workspace = scratch.workspace.at_least(on, program.workspace())?;
        // A sum over n pixels is at most n times its largest term, and in practice about √n times. Scaling by
        // 1/√n keeps it in range.
        let scale = 2f32.powi(-((self.output.pixels() as f64).log2() / 2.0).ceil() as i32);
        // SAFETY: the checks above have validated both maps. The gradient has an element for each output,
        // kernel position and channel of the program's filter. The workspace has the program's size.
        unsafe {
            program.weight_gradient(workspace, [x, dy.values], (gradient.slice_mut(), [scale, 0.0]))?;
        }
        let unscale = Some((dy.inverse_scale, 1.0 / scale));
        self.add_filter_gradient(on, (gradient.slice(), input.channels), unscale, dw)
    }

    /// `dw ← dw +` a gradient in cuDNN's order, (out, height, width, `channels`), times both factors if
    /// given.
    fn add_filter_gradient(
        &self,
        on: &Context,
        (gradient, channels): (MapSlice<'_>, usize),
        factors: Option<(&Buffer, f32)>,
        dw: &mut Buffer,
    ) -> Result<()> {
        let g = self.geometry;
        let (n, p) = (g.outputs * g.inputs, (g.kernel * g.kernel) as u32);
        let (inverse_scale, factor) = factors.unzip();
        let args = args![
            gradient.element().code(channels),
            n,
            g.inputs as u32,
            p,
            channels as u32,
            In(gradient),
            In(inverse_scale),
            factor.unwrap_or(1.0),
            Out(dw)
        ];
        // SAFETY: callers pass a gradient for all outputs, kernel positions and `channels`, at least the
        // geometry's inputs. They have checked that dw has the geometry's weights and that a scale is one
        // number.
        unsafe { on.launch_over("pauc_filter_gradient", n, args) }
    }
}
