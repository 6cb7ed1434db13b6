//! Selection of vector instructions at run time.
//!
//! A kernel is written once, over vectors of any length, and compiled three times. A [`Simd`] value selects
//! one of the three; its existence proves that the machine supports it.

use std::sync::OnceLock;

/// The environment variable that selects instructions: `avx512`, `avx2` or `portable`.
pub const VARIABLE: &str = "PAUC_SIMD";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
    /// AVX-512's shapes in plain Rust, to test its paths on every machine.
    #[cfg(test)]
    Wide,
}

/// Instructions that this machine supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd(pub(crate) Level);

/// The value of [`VARIABLE`] is not supported on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported(String);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = Simd::all().iter().map(|s| s.name()).collect();
        write!(
            f,
            "{VARIABLE}={:?} is not supported on this machine; set it to one of {}, or unset it",
            self.0,
            names.join(", ")
        )
    }
}

impl std::error::Error for Unsupported {}

impl Simd {
    /// Returns all instructions that this machine supports, the fastest first.
    pub fn all() -> &'static [Simd] {
        static ALL: OnceLock<Vec<Simd>> = OnceLock::new();
        ALL.get_or_init(|| {
            let mut levels = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                    levels.push(Simd(Level::Avx512));
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    levels.push(Simd(Level::Avx2));
                }
            }
            levels.push(Simd(Level::Portable));
            #[cfg(test)]
            levels.push(Simd(Level::Wide));
            levels
        })
    }

    /// Returns the fastest instructions, or those that [`VARIABLE`] selects.
    ///
    /// # Errors
    /// If the variable's value is not supported on this machine.
    pub fn detect() -> Result<Simd, Unsupported> {
        match std::env::var(VARIABLE) {
            Ok(name) => Simd::named(&name),
            Err(_) => Ok(Simd::all()[0]),
        }
    }

    /// Returns the result of the first [`Simd::detect`], or the fastest instructions if the variable's value
    /// is not supported: for kernels that cannot fail. Building a network reports such a value.
    pub fn active() -> Simd {
        static ACTIVE: OnceLock<Simd> = OnceLock::new();
        *ACTIVE.get_or_init(|| Simd::detect().unwrap_or(Simd::all()[0]))
    }

    /// Returns the instructions, for kernels that are not written over [`Vector`].
    pub(crate) fn level(self) -> Level {
        self.0
    }

    fn named(name: &str) -> Result<Simd, Unsupported> {
        Simd::all().iter().copied().find(|s| s.name() == name).ok_or_else(|| Unsupported(name.into()))
    }

    /// Returns the name for [`VARIABLE`].
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            Level::Portable => "portable",
            #[cfg(test)]
            Level::Wide => "wide",
        }
    }

    /// Returns the columns of a register tile for an output of `channels` channels, a multiple of
    /// [`CHANNELS`].
    pub(crate) fn panel(self, channels: usize) -> usize {
        debug_assert!(channels.is_multiple_of(CHANNELS), "{channels} channels");
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 16,
            Level::Portable => 8,
            // AVX-512, and its emulation in tests.
            #[allow(unreachable_patterns)] // neither exists in a build for another processor
            _ => [64, 32].into_iter().find(|c| channels.is_multiple_of(*c)).unwrap_or(16),
        }
    }
}

/// Returns whether the processor has AVX-512's 8-bit integer products (VNNI) and byte operations.
#[cfg(target_arch = "x86_64")]
pub(crate) fn multiplies_bytes() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// The channels of a feature map are rounded up to a multiple of this, the widest vector.
pub const CHANNELS: usize = 16;

/// A vector of `f32` in a register.
///
/// # Safety
/// The machine supports the vector's instructions. Pointers are valid for [`Vector::LANES`] values, with any
/// alignment.
pub(crate) trait Vector: Copy {
    /// The number of values.
    const LANES: usize;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(v: f32) -> Self;
    /// Loads the values at `from`, `from + stride`, … `from + (LANES − 1)·stride`, each valid.
    unsafe fn gather(from: *const f32, stride: usize) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// self · a + b, with a single rounding if the machine supports it.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    /// Self where `by` is greater than zero, zero elsewhere.
    unsafe fn where_positive(self, by: Self) -> Self;
}

macro_rules! x86_vector {
    ($name:ident, $raw:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident,
     $fma:ident, $max:ident, |$v:ident, $by:ident| $mask:expr, |$from:ident, $stride:ident| $gather:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name($raw);

        // SAFETY (of every block): the trait's contract, passed on to the intrinsic.
        #[cfg(target_arch = "x86_64")]
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Vector for $name {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                $name(unsafe { $load(from) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { $store(to, self.0) }
            }
            #[inline(always)]
            unsafe fn splat(v: f32) -> Self {
                $name(unsafe { $splat(v) })
            }
            #[inline(always)]
            unsafe fn gather(from: *const f32, stride: usize) -> Self {
                debug_assert!(i32::try_from(stride * $lanes).is_ok());
                let ($from, $stride) = (from, stride as i32);
                $name(unsafe { $gather })
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                $name(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                $name(unsafe { $sub(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                $name(unsafe { $mul(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                $name(unsafe { $fma(self.0, a.0, b.0) })
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                $name(unsafe { $max(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn where_positive(self, by: Self) -> Self {
                let ($v, $by) = (self.0, by.0);
                $name(unsafe { $mask })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

x86_vector!(
    V16,
    __m512,
    16,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_max_ps,
    |v, by| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(by, _mm512_setzero_ps()), v),
    |from, stride| {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        _mm512_i32gather_ps::<4>(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride)), from)
    }
);
x86_vector!(
    V8,
    __m256,
    8,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_max_ps,
    |v, by| _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(by, _mm256_setzero_ps()), v),
    |from, stride| {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_i32gather_ps::<4>(from, _mm256_mullo_epi32(lanes, _mm256_set1_epi32(stride)))
    }
);

/// Values in plain Rust. Four of them are one register of SSE2 or NEON.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const N: usize>([f32; N]);

/// The portable vector.
pub(crate) type V4 = Plain<4>;

impl<const N: usize> Plain<N> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Plain(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl<const N: usize> Vector for Plain<N> {
    const LANES: usize = N;
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: valid for reads of N values by the trait's contract.
        Plain(unsafe { from.cast::<[f32; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: valid for writes of N values by the trait's contract.
        unsafe { to.cast::<[f32; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Plain([v; N])
    }
    #[inline(always)]
    unsafe fn gather(from: *const f32, stride: usize) -> Self {
        // SAFETY: valid for reads of N values, `stride` apart, by the method's contract.
        Plain(std::array::from_fn(|i| unsafe { *from.add(i * stride) }))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // Without the instruction, a fused product is a call into the C library.
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        Plain(std::array::from_fn(|i| {
            if fused { self.0[i].mul_add(a.0[i], b.0[i]) } else { self.0[i] * a.0[i] + b.0[i] }
        }))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn where_positive(self, by: Self) -> Self {
        self.zip(by, |v, by| if by > 0.0 { v } else { 0.0 })
    }
}

/// `dispatch!(simd => body(arguments))` calls `body::<V>(arguments)`, compiled for the instructions of
/// `simd`. `body` must be `#[inline(always)]`. The types of the arguments are needed because each becomes a
/// parameter.
macro_rules! dispatch {
    ($simd:expr => $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512($($arg: $ty),*) {
            // SAFETY: the caller's contract.
            unsafe { $body::<$crate::simd::V16>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2($($arg: $ty),*) {
            // SAFETY: the caller's contract.
            unsafe { $body::<$crate::simd::V8>($($arg),*) }
        }
        match $simd.0 {
            // SAFETY: a `Simd` of this level exists only if the machine has AVX-512. The rest is the caller's
            // contract.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
            // SAFETY: a `Simd` of this level exists only if the machine has AVX2 and FMA. The rest is the
            // caller's contract.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
            // SAFETY: the caller's contract.
            $crate::simd::Level::Portable => unsafe { $body::<$crate::simd::V4>($($arg),*) },
            // SAFETY: the caller's contract.
            #[cfg(test)]
            $crate::simd::Level::Wide => unsafe { $body::<$crate::simd::Plain<16>>($($arg),*) },
        }
    }};
}
pub(crate) use dispatch;

/// Declares a function that runs the safe function of the same name in the module `body`, compiled for the active
/// instruction set.
macro_rules! dispatched {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) $(-> $out)? {
                    body::$name($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $out)? {
                    body::$name($($arg),*)
                }
                match $crate::simd::Simd::active().level() {
                    // SAFETY: the value proves that the machine has AVX-512F. The body is safe code.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: the value proves that the machine has AVX2 and FMA. The body is safe code.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body::$name($($arg),*)
        }
    };
}
pub(crate) use dispatched;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_file_detects_processor_features() {
        fn sources(folder: &std::path::Path, to: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    sources(&path, to);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    to.push(path);
                }
            }
        }
        let mut files = Vec::new();
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let asks = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path).unwrap().contains(concat!("is_x86_", "feature_detected!"))
        };
        let asking: Vec<_> = files.into_iter().filter(asks).collect();
        assert!(
            asking.len() == 1 && asking[0].ends_with("simd.rs"),
            "PAUC_SIMD must apply to all kernels; features are detected in {asking:?}"
        );
    }

    #[test]
    fn names_are_accepted_and_others_refused_with_the_choices() {
        for simd in Simd::all() {
            assert_eq!(Simd::named(simd.name()), Ok(*simd));
        }
        let text = Simd::named("mmx").unwrap_err().to_string();
        assert!(text.contains("\"mmx\"") && text.contains("portable"), "{text}");
    }

    #[inline(always)]
    unsafe fn strided<V: Vector>(from: *const f32, stride: usize, out: *mut f32) {
        for i in (0..16).step_by(V::LANES) {
            // SAFETY: the test passes arrays of 16·stride and 16 values.
            unsafe { V::gather(from.add(i * stride), stride).store(out.add(i)) }
        }
    }

    #[test]
    fn values_are_gathered_in_strides() {
        let from: Vec<f32> = (0..16 * 9).map(|i| i as f32).collect();
        for simd in Simd::all() {
            for stride in [1, 2, 9] {
                let (mut out, start) = ([0f32; 16], from.as_ptr());
                let to = out.as_mut_ptr();
                dispatch!(simd => strided(start: *const f32, stride: usize, to: *mut f32));
                assert_eq!(out, std::array::from_fn(|i| (i * stride) as f32), "{} {stride}", simd.name());
            }
        }
    }

    #[inline(always)]
    unsafe fn exercise<V: Vector>(a: *const f32, b: *const f32, out: *mut f32) {
        for i in (0..16).step_by(V::LANES) {
            // SAFETY: the test passes arrays of 16 and 7·16 values.
            unsafe {
                let (x, y) = (V::load(a.add(i)), V::load(b.add(i)));
                let results = [
                    x.add(y),
                    x.sub(y),
                    x.mul(y),
                    x.mul_add(y, V::splat(0.5)),
                    x.max(y),
                    x.where_positive(y),
                    x,
                ];
                for (n, r) in results.into_iter().enumerate() {
                    r.store(out.add(16 * n + i));
                }
            }
        }
    }

    #[test]
    fn every_vector_computes_its_operations() {
        let a: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.25);
        let b: [f32; 16] = std::array::from_fn(|i| ((i * 5) % 16) as f32 - 8.0);
        for simd in Simd::all() {
            let mut out = [[0f32; 16]; 7];
            let (pa, pb, po) = (a.as_ptr(), b.as_ptr(), out.as_mut_ptr().cast::<f32>());
            dispatch!(simd => exercise(pa: *const f32, pb: *const f32, po: *mut f32));
            for i in 0..16 {
                let (x, y) = (a[i], b[i]);
                let masked = if y > 0.0 { x } else { 0.0 };
                let want = [x + y, x - y, x * y, x * y + 0.5, x.max(y), masked, x];
                for (n, w) in want.into_iter().enumerate() {
                    assert_eq!(out[n][i], w, "{} operation {n}", simd.name());
                }
            }
        }
    }
}
