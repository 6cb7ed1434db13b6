//! Convolutions of maps (N, H, W, C), through cuDNN; those of single pixels are products of matrices, through cuBLAS.

use crate::field::{Element, Elements, ElementsMut, Field, Maps};
use crate::memory::ViewMut;
use crate::norm::Halved;
use crate::rows::{Factor, product};
use crate::{Buffer, Context, Error, Result, args, library};
use cudarc::cudnn::result as dnn;
use cudarc::cudnn::sys;
use pauc_kernels::conv::Geometry;
use std::ffi::c_void;
use std::rc::Rc;

/// How products are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Math {
    /// As in `f32`. Convolutions multiply factors of 22 bits on tensor cores that take `f32`: three products of parts of eleven bits,
    /// with sums of 24.
    #[default]
    F32,
    /// Tensor cores with factors of 11 bits; sums have 24. Gradients of filters are products of halves, with as many bits, and
    /// are such when they are added up.
    Tf32,
    /// Maps and the filters of convolutions in bf16, with eight bits, on tensor cores; sums have 24. Other products as with
    /// `Tf32`.
    Bf16,
}

impl Math {
    /// What the elements of maps are.
    pub fn element(self) -> Element {
        match self {
            Math::F32 | Math::Tf32 => Element::F32,
            Math::Bf16 => Element::Bf16,
        }
    }

    /// Channels of maps that are made of images: tensor cores take 16 bytes of a pixel at a time.
    pub fn channels(self, images: usize) -> usize {
        match self {
            Math::F32 | Math::Tf32 => images.next_multiple_of(4),
            Math::Bf16 => images.next_multiple_of(8),
        }
    }
}

/// cuDNN on the device's stream.
#[derive(Debug)]
pub struct Dnn {
    handle: sys::cudnnHandle_t,
}

impl Dnn {
    pub(crate) fn new(on: &Context) -> Result<Self> {
        if let Some(problem) = library::CUDNN.problem() {
            let library::Library { name, remedy, .. } = library::CUDNN;
            return Err(Error::Missing { name, problem: problem.into(), remedy });
        }
        on.device().bind_to_thread()?;
        let handle = dnn::create_handle()?;
        // SAFETY: the handle is new, and the stream is the device's.
        unsafe { dnn::set_stream(handle, *on.device().cu_stream() as sys::cudaStream_t) }?;
        Ok(Dnn { handle })
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle. There is nobody to tell of a failure.
        let _ = unsafe { dnn::destroy_handle(self.handle) };
    }
}

/// What cuDNN knows a convolution by.
#[derive(Debug)]
struct Descriptors {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: each was created by cuDNN and is destroyed once. There is nobody to tell of a failure.
        unsafe {
            let _ = dnn::destroy_tensor_descriptor(self.x);
            let _ = dnn::destroy_tensor_descriptor(self.y);
            let _ = dnn::destroy_filter_descriptor(self.w);
            let _ = dnn::destroy_convolution_descriptor(self.conv);
        }
    }
}

/// Passes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    All,
    Weight,
}

/// cuDNN's way to compute it.
#[derive(Debug)]
struct Program {
    dnn: Rc<Dnn>,
    of: Descriptors,
    by: Algorithms,
    /// Bytes that the passes need beside their operands.
    work: usize,
}

impl Program {
    /// For maps of `element`, on tensor cores or not.
    fn new(
        on: &Context,
        g: Geometry,
        (input, output): (Maps, Maps),
        (element, on_cores): (Element, bool),
        passes: Passes,
    ) -> Result<Self> {
        let dnn = on.dnn()?;
        if input.len().max(output.len()) > i32::MAX as usize {
            let message =
                format!("{input:?} to {output:?}: cuDNN counts elements in 31 bits; use smaller batches");
            return Err(Error::Length { operation: "convolution", message });
        }
        let of = Descriptors {
            x: dnn::create_tensor_descriptor()?,
            y: dnn::create_tensor_descriptor()?,
            w: dnn::create_filter_descriptor()?,
            conv: dnn::create_convolution_descriptor()?,
        };
        let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let kind = match element {
            Element::F32 => float,
            Element::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            Element::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
        };
        let sides = |m: Maps| [m.batch, m.channels, m.height, m.width].map(|v| v as i32);
        let strides = |m: Maps| {
            [m.channels * m.height * m.width, 1, m.width * m.channels, m.channels].map(|v| v as i32)
        };
        let kernel = [g.outputs, input.channels, g.kernel, g.kernel].map(|v| v as i32);
        let (pad, stride) = (g.padding as i32, g.stride as i32);
        let cross = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let cores = match on_cores {
            false => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            true => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        let by = Algorithms::default();
        // SAFETY: the descriptors are new, and those that are read have been written before.
        let work = unsafe {
            dnn::set_tensor4d_descriptor_ex(of.x, kind, sides(input), strides(input))?;
            dnn::set_tensor4d_descriptor_ex(of.y, kind, sides(output), strides(output))?;
            dnn::set_filter4d_descriptor(of.w, kind, sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC, kernel)?;
            dnn::set_convolution2d_descriptor(of.conv, pad, pad, stride, stride, 1, 1, cross, float)?;
            dnn::set_convolution_math_type(of.conv, cores)?;
            let (h, x, y, w, conv) = (dnn.handle, of.x, of.y, of.w, of.conv);
            let weight = dnn::get_convolution_backward_filter_workspace_size(h, x, y, conv, w, by.weight)?;
            if passes == Passes::Weight {
                weight
            } else {
                let forward = dnn::get_convolution_forward_workspace_size(h, x, w, conv, y, by.forward)?;
                let input = dnn::get_convolution_backward_data_workspace_size(h, w, y, conv, x, by.input)?;
                forward.max(input).max(weight)
            }
        };
        Ok(Program { dnn, of, by, work })
    }

    /// `y ← w ∗ x + beta·y`.
    fn forward(
        &self,
        (space, bytes): Space,
        [x, w]: [Elements<'_>; 2],
        (y, beta): (&ElementsMut<'_>, f32),
    ) -> Result<()> {
        let one = 1f32;
        // SAFETY: operands have the shapes that the descriptors say.
        unsafe {
            dnn::convolution_forward(
                self.dnn.handle,
                std::ptr::from_ref(&one).cast(),
                self.of.x,
                x.address() as *const c_void,
                self.of.w,
                w.address() as *const c_void,
                self.of.conv,
                self.by.forward,
                space,
                bytes,
                std::ptr::from_ref(&beta).cast(),
                self.of.y,
                y.address() as *mut c_void,
            )?;
        }
        Ok(())
    }

    /// `dx ←` the gradient of the input `+ beta·dx`.
    fn input_gradient(
        &self,
        (space, bytes): Space,
        [dy, w]: [Elements<'_>; 2],
        (dx, beta): (&ElementsMut<'_>, f32),
    ) -> Result<()> {
        let one = 1f32;
        // SAFETY: operands have the shapes that the descriptors say.
        unsafe {
            dnn::convolution_backward_data(
                self.dnn.handle,
                std::ptr::from_ref(&one).cast(),
                self.of.w,
                w.address() as *const c_void,
                self.of.y,
                dy.address() as *const c_void,
                self.of.conv,
                self.by.input,
                space,
                bytes,
                std::ptr::from_ref(&beta).cast(),
                self.of.x,
                dx.address() as *mut c_void,
            )?;
        }
        Ok(())
    }

    /// `to ← alpha·gradient of the weights + beta·to`.
    fn weight_gradient(
        &self,
        (space, bytes): Space,
        [x, dy]: [Elements<'_>; 2],
        (to, (alpha, beta)): (u64, (f32, f32)),
    ) -> Result<()> {
        // SAFETY: operands have the shapes that the descriptors say.
        unsafe {
            dnn::convolution_backward_filter(
                self.dnn.handle,
                std::ptr::from_ref(&alpha).cast(),
                self.of.x,
                x.address() as *const c_void,
                self.of.y,
                dy.address() as *const c_void,
                self.of.conv,
                self.by.weight,
                space,
                bytes,
                std::ptr::from_ref(&beta).cast(),
                self.of.w,
                to as *mut c_void,
            )?;
        }
        Ok(())
    }
}

/// How the three passes are computed. All have one result for one input: none adds with atomics.
#[derive(Clone, Copy, Debug)]
struct Algorithms {
    forward: sys::cudnnConvolutionFwdAlgo_t,
    input: sys::cudnnConvolutionBwdDataAlgo_t,
    weight: sys::cudnnConvolutionBwdFilterAlgo_t,
}

impl Default for Algorithms {
    fn default() -> Self {
        Algorithms {
            forward: sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
            input: sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
            weight: sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
        }
    }
}

/// A convolution of batches of one size. Weights are given in interchange order, (out, in, height, width).
#[derive(Debug)]
pub struct Convolution {
    /// None where it is a product of matrices.
    by: Option<Program>,
    /// Of the gradient of the weights, where its factors are halves.
    by_halves: Option<Program>,
    input: Maps,
    output: Maps,
    geometry: Geometry,
    element: Element,
    /// The weights as cuDNN reads them, where that is not how they are given.
    filter: Option<Field>,
    /// Whether factors are sums of two, [`Parts`].
    in_parts: bool,
}

/// What cuDNN uses while it runs, and how many bytes that is.
type Space = (*mut c_void, usize);

/// Floats as sums of two, of eleven digits and of what those leave, which tensor cores read to eleven digits too.
#[derive(Debug)]
struct Parts {
    upper: Field,
    lower: Field,
}

/// Memory that convolutions use while they run, one after the other.
#[derive(Debug, Default)]
pub struct Work {
    space: Option<Buffer>,
    /// A gradient of weights as cuDNN leaves it.
    gradient: Option<Field>,
    /// Of the first factor of a product and of the second.
    parts: [Option<Parts>; 2],
}

impl Work {
    /// At least so many bytes.
    fn space(&mut self, on: &Context, bytes: usize) -> Result<Space> {
        if bytes == 0 {
            return Ok((std::ptr::null_mut(), 0));
        }
        if self.space.as_ref().is_none_or(|b| b.len() * 4 < bytes) {
            self.space = None;
            self.space = Some(Buffer::any(on, bytes.div_ceil(4))?);
        }
        let address = self.space.as_ref().map_or(0, Buffer::address);
        Ok((address as *mut c_void, bytes))
    }

    /// At least so many elements.
    fn gradient(&mut self, on: &Context, len: usize, element: Element) -> Result<ElementsMut<'_>> {
        let there = self.gradient.take().filter(|f| f.len() >= len && f.elements().element() == element);
        let there = there.map_or_else(|| Field::any(on, len, element), Ok)?;
        Ok(self.gradient.insert(there).elements_mut())
    }

    /// Writes a factor's parts.
    fn take_apart(&mut self, on: &Context, which: usize, factor: Elements<'_>) -> Result<()> {
        let n = factor.len();
        let there = self.parts[which].take().filter(|p| p.upper.len() >= n);
        let any = || Field::any(on, n, Element::F32);
        let there = there.map_or_else(|| Ok::<_, Error>(Parts { upper: any()?, lower: any()? }), Ok)?;
        let parts = self.parts[which].insert(there);
        let args = args![n, factor, &parts.upper.elements_mut(), &parts.lower.elements_mut()];
        // SAFETY: there are as many numbers, and room for as many of each part.
        unsafe { on.launch_over("pauc_parts", if n.is_multiple_of(4) { n / 4 } else { n }, args) }
    }

    /// The products that one of two factors is the sum of, the smallest first: with what `f32` rounds away left out, which is that of
    /// both lower parts.
    fn products<'a>(
        &'a mut self,
        on: &Context,
        in_parts: bool,
        [a, b]: [Elements<'a>; 2],
    ) -> Result<Vec<[Elements<'a>; 2]>> {
        if !in_parts {
            return Ok(vec![[a, b]]);
        }
        self.take_apart(on, 0, a)?;
        self.take_apart(on, 1, b)?;
        let [Some(first), Some(second)] = &self.parts else { return Err(Error::Address) };
        let [a, b] = [first, second].map(|p| [p.upper.elements(), p.lower.elements()]);
        Ok(vec![[a[0], b[1]], [a[1], b[0]], [a[0], b[0]]])
    }
}

impl Convolution {
    /// For maps of the geometry's size, of at least the channels that it says.
    ///
    /// # Errors
    /// If cuDNN is missing or does not take the shape.
    pub fn new(on: &Context, g: Geometry, input: Maps, math: Math) -> Result<Self> {
        let (height, width) = g.output();
        let output = Maps { batch: input.batch, channels: g.outputs, height, width };
        if (input.height, input.width) != (g.height, g.width) || input.channels < g.inputs {
            let message = format!("{input:?} for a convolution of {}×{}×{}", g.height, g.width, g.inputs);
            return Err(Error::Length { operation: "convolution", message });
        }
        let element = math.element();
        let in_parts = Self::takes_parts(on, math)?;
        let kind = (element, math != Math::F32 || in_parts);
        let program = |input, kind, passes| Program::new(on, g, (input, output), kind, passes);
        let by = if Self::is_product(g) { None } else { Some(program(input, kind, Passes::All)?) };
        let by_halves = match Self::takes_halves(g, math) {
            true => Some(program(Self::as_halves(input), (Element::F16, true), Passes::Weight)?),
            false => None,
        };
        // A filter of one weight a channel lies the same either way.
        let same = g.kernel == 1 && input.channels == g.inputs && element == Element::F32;
        let filter = g.outputs * g.kernel * g.kernel * input.channels;
        let filter = if same { None } else { Some(Field::any(on, filter, element)?) };
        Ok(Convolution { by, by_halves, input, output, geometry: g, element, filter, in_parts })
    }

    /// The maps that [`Convolution::weight_gradient_of_halves`] reads, if [`Convolution::takes_halves`].
    pub fn halves(&self) -> Option<Maps> {
        self.by_halves.as_ref().map(|_| Self::as_halves(self.input))
    }

    /// Whether the gradient of its weights is a product of halves.
    pub fn takes_halves(g: Geometry, math: Math) -> bool {
        math == Math::Tf32 && !Self::is_product(g)
    }

    /// Whether its factors are taken apart, each into two of its size: they are, where tensor cores take `f32` and it is `f32` that is
    /// asked for.
    ///
    /// # Errors
    /// If the device fails.
    pub fn takes_parts(on: &Context, math: Math) -> Result<bool> {
        Ok(math == Math::F32 && on.has_tf32()?)
    }

    /// An input as halves: tensor cores take eight channels of them at a time.
    pub fn as_halves(input: Maps) -> Maps {
        Maps { channels: input.channels.next_multiple_of(8), ..input }
    }

    /// Whether it is a product of matrices: of single pixels, all of them.
    pub fn is_product(g: Geometry) -> bool {
        (g.kernel, g.stride, g.padding) == (1, 1, 0)
    }

    /// The maps that it reads.
    pub fn input(&self) -> Maps {
        self.input
    }

    /// An input, or its gradient, as a factor of a product.
    fn input_rows<'a>(&self, x: Elements<'a>) -> Factor<'a> {
        Factor::new(x, self.input.pixels(), self.input.channels)
    }

    /// An output, or its gradient, as a factor of a product.
    fn output_rows<'a>(&self, y: Elements<'a>) -> Factor<'a> {
        Factor::new(y, self.output.pixels(), self.output.channels)
    }

    /// The weights as a factor of a product, (out, in).
    fn matrix<'a>(&self, w: Elements<'a>) -> Factor<'a> {
        Factor::new(w, self.output.channels, self.input.channels)
    }

    fn check(&self, x: Elements<'_>, w: usize, y: Elements<'_>) -> Result<()> {
        let elements = (self.input.check("convolution", &[x])?, self.output.check("convolution", &[y])?);
        if w == self.geometry.weights() && elements == (self.element, self.element) {
            return Ok(());
        }
        let message = format!("{w} weights of {:?} for {elements:?}", self.geometry);
        Err(Error::Length { operation: "convolution", message })
    }

    /// `y ← w ∗ x`.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn forward(
        &mut self,
        on: &Context,
        work: &mut Work,
        x: Elements<'_>,
        w: &Buffer,
        y: ElementsMut<'_>,
    ) -> Result<()> {
        self.check(x, w.len(), y.read())?;
        self.convert(on, w)?;
        let factors = [x.part(0, self.input.len()), self.read(w)];
        let Some(program) = &self.by else {
            let product = |[x, w]: [Elements<'_>; 2], beta| {
                product(on, self.input_rows(x), self.matrix(w).t(), beta, y.again())
            };
            return self.sum(on, work, factors, 0.0, product);
        };
        let space = work.space(on, program.work)?;
        self.sum(on, work, factors, 0.0, |factors, beta| program.forward(space, factors, (&y, beta)))
    }

    /// The sum of products that a product is, each added to `beta` times what is there.
    fn sum(
        &self,
        on: &Context,
        work: &mut Work,
        factors: [Elements<'_>; 2],
        beta: f32,
        product: impl Fn([Elements<'_>; 2], f32) -> Result<()>,
    ) -> Result<()> {
        let products = work.products(on, self.in_parts, factors)?;
        // What is there counts once.
        let all = || {
            let mut each = products.into_iter().enumerate();
            each.try_for_each(|(i, factors)| product(factors, if i == 0 { beta } else { 1.0 }))
        };
        // cuBLAS has to be told that it may use tensor cores.
        if self.in_parts && self.by.is_none() { on.in_math(Math::Tf32, all) } else { all() }
    }

    /// The weights as cuDNN reads them.
    fn read<'a>(&'a self, w: &'a Buffer) -> Elements<'a> {
        self.filter.as_ref().map_or_else(|| w.view().into(), Field::elements)
    }

    /// Writes the weights as cuDNN reads them, where they are given in another way.
    fn convert(&mut self, on: &Context, w: &Buffer) -> Result<()> {
        let Some(filter) = &mut self.filter else { return Ok(()) };
        let (g, channels, n) = (self.geometry, self.input.channels, filter.len());
        let (code, p) = (self.element.code(channels), (g.kernel * g.kernel) as u32);
        let args = args![code, n, g.inputs as u32, p, channels as u32, w, &filter.elements_mut()];
        // SAFETY: there are as many weights as the geometry says, and room for those of all channels.
        unsafe { on.launch_over("pauc_filter", n / self.element.pack(channels), args) }
    }

    /// `dx ← dx·beta +` the gradient of the input, with the weights of the last [`Convolution::forward`].
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn input_gradient(
        &self,
        on: &Context,
        work: &mut Work,
        dy: Elements<'_>,
        w: &Buffer,
        (dx, beta): (ElementsMut<'_>, f32),
    ) -> Result<()> {
        self.check(dx.read(), w.len(), dy)?;
        let factors = [dy.part(0, self.output.len()), self.read(w)];
        let Some(program) = &self.by else {
            let product = |[dy, w]: [Elements<'_>; 2], beta| {
                product(on, self.output_rows(dy), self.matrix(w), beta, dx.again())
            };
            return self.sum(on, work, factors, beta, product);
        };
        let space = work.space(on, program.work)?;
        self.sum(on, work, factors, beta, |factors, beta| program.input_gradient(space, factors, (&dx, beta)))
    }

    /// `dw ← dw +` the gradient of the weights.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn weight_gradient(
        &self,
        on: &Context,
        work: &mut Work,
        x: Elements<'_>,
        dy: Elements<'_>,
        dw: &mut Buffer,
    ) -> Result<()> {
        self.check(x, dw.len(), dy)?;
        let factors = [x.part(0, self.input.len()), dy.part(0, self.output.len())];
        let Some(program) = &self.by else {
            let product = |[x, dy]: [Elements<'_>; 2], beta| {
                product(on, self.output_rows(dy).t(), self.input_rows(x), beta, ViewMut::of(dw, 0, dw.len()))
            };
            return self.sum(on, work, factors, 1.0, product);
        };
        let (to, beta) = match &self.filter {
            Some(filter) => (work.gradient(on, filter.len(), self.element)?.address(), 0.0),
            None => (dw.address(), 1.0),
        };
        let space = work.space(on, program.work)?;
        self.sum(on, work, factors, beta, |factors, beta| {
            program.weight_gradient(space, factors, (to, (1.0, beta)))
        })?;
        if self.filter.is_none() {
            return Ok(());
        }
        self.add(on, (to, self.element, self.input.channels), None, dw)
    }

    /// The same from halves of the input, of the channels that [`Convolution::halves`] says.
    ///
    /// # Errors
    /// If lengths disagree, the gradient of this convolution is computed otherwise, or the device fails.
    pub fn weight_gradient_of_halves(
        &self,
        on: &Context,
        work: &mut Work,
        x: Elements<'_>,
        dy: Halved<'_>,
        dw: &mut Buffer,
    ) -> Result<()> {
        const OPERATION: &str = "gradient of weights from halves";
        let input = Self::as_halves(self.input);
        let elements = (input.check(OPERATION, &[x])?, self.output.check(OPERATION, &[dy.values])?);
        let weights = (dw.len(), dy.unit.len()) == (self.geometry.weights(), 1);
        let Some(program) =
            self.by_halves.as_ref().filter(|_| elements == (Element::F16, Element::F16) && weights)
        else {
            let message = format!("{} weights of {:?} for {elements:?}", dw.len(), self.geometry);
            return Err(Error::Length { operation: OPERATION, message });
        };
        let channels = input.channels;
        let len = self.geometry.outputs * self.geometry.kernel * self.geometry.kernel * channels;
        let to = work.gradient(on, len, Element::F16)?.address();
        // A sum over so many pixels is at most so many times its largest part, and about the root of that times it.
        let root = 2f32.powi(-((self.output.pixels() as f64).log2() / 2.0).ceil() as i32);
        let space = work.space(on, program.work)?;
        program.weight_gradient(space, [x, dy.values], (to, (root, 0.0)))?;
        self.add(on, (to, Element::F16, channels), Some((dy.unit, 1.0 / root)), dw)
    }

    /// `dw ← dw +` a gradient as convolutions leave it, times a unit and a factor.
    fn add(
        &self,
        on: &Context,
        (from, element, channels): (u64, Element, usize),
        times: Option<(&Buffer, f32)>,
        dw: &mut Buffer,
    ) -> Result<()> {
        let g = self.geometry;
        let (n, p) = (g.outputs * g.inputs, (g.kernel * g.kernel) as u32);
        let (unit, share) = times.map_or((0, 1.0), |(unit, share)| (unit.address(), share));
        let (code, inputs) = (element.code(channels), g.inputs as u32);
        let args = args![code, n, inputs, p, channels as u32, from, unit, share, dw];
        // SAFETY: the gradient has all channels' weights, and there are as many weights as the geometry says.
        unsafe { on.launch_over("pauc_filter_gradient", n, args) }
    }
}
