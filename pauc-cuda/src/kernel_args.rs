//! Arguments of kernels: numbers, and memory that a kernel reads ([`In`]) or writes ([`Out`]).
//!
//! An argument keeps its memory borrowed until the launch, mutably if the kernel writes it. It also stores
//! its kind, which a launch compares with the kernel's declaration: [`crate::kernels::check`].

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;

/// The type behind a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pointee {
    /// `void`: any of the others. Also the type of a null pointer.
    Any,
    /// `float`
    F32,
    /// `double`
    F64,
    /// `unsigned`
    U32,
    /// `unsigned char`
    U8,
    /// bf16 or fp16. Kernels declare `void` for these, since they accept several element types.
    Half,
    /// A table of structs made of 64-bit words.
    Table,
}

/// The kind of an argument or of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A pointer to memory that the kernel reads.
    In(Pointee),
    /// A pointer to memory that the kernel writes, and may read.
    Out(Pointee),
    /// `size_t`
    Count,
    /// `unsigned`
    U32,
    /// `float`
    F32,
}

impl Kind {
    /// Returns whether a parameter of this kind accepts such an argument.
    pub fn accepts(self, argument: Kind) -> bool {
        let points_alike = |a, b| a == b || a == Pointee::Any || b == Pointee::Any;
        match (self, argument) {
            (Kind::In(a), Kind::In(b)) | (Kind::Out(a), Kind::Out(b)) => points_alike(a, b),
            (a, b) => a == b,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |pointee: &Pointee| match pointee {
            Pointee::Any => "any type",
            Pointee::F32 => "`float`",
            Pointee::F64 => "`double`",
            Pointee::U32 => "`unsigned`",
            Pointee::U8 => "`unsigned char`",
            Pointee::Half => "half precision",
            Pointee::Table => "a table",
        };
        match self {
            Kind::In(pointee) => write!(f, "memory to read of {}", name(pointee)),
            Kind::Out(pointee) => write!(f, "memory to write of {}", name(pointee)),
            Kind::Count => write!(f, "a count (`size_t`)"),
            Kind::U32 => write!(f, "an `unsigned`"),
            Kind::F32 => write!(f, "a `float`"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Word(u64),
    U32(u32),
    F32(f32),
}

/// An argument of a kernel.
#[derive(Debug)]
pub(crate) struct Arg<'a> {
    value: Value,
    kind: Kind,
    borrowed: PhantomData<&'a mut ()>,
}

impl Arg<'_> {
    fn new(value: Value, kind: Kind) -> Self {
        Arg { value, kind, borrowed: PhantomData }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns a pointer to the value. The driver takes a mutable pointer but only reads it.
    pub fn pointer(&self) -> *mut c_void {
        match &self.value {
            Value::Word(v) => std::ptr::from_ref(v).cast_mut().cast(),
            Value::U32(v) => std::ptr::from_ref(v).cast_mut().cast(),
            Value::F32(v) => std::ptr::from_ref(v).cast_mut().cast(),
        }
    }
}

/// Memory that a kernel reads.
#[derive(Debug)]
pub(crate) struct In<T>(pub T);

/// Memory that a kernel writes, and may read.
#[derive(Debug)]
pub(crate) struct Out<T>(pub T);

/// Memory for [`In`]. `None` is a null pointer.
pub(crate) trait Readable {
    fn address(&self) -> u64;
    fn pointee(&self) -> Pointee;
}

/// Memory for [`Out`]: an exclusive borrow. `None` is a null pointer.
pub(crate) trait Writable {
    fn address(&self) -> u64;
    fn pointee(&self) -> Pointee;
}

impl<'a, T: Readable + 'a> From<In<T>> for Arg<'a> {
    fn from(In(memory): In<T>) -> Self {
        Arg::new(Value::Word(memory.address()), Kind::In(memory.pointee()))
    }
}

impl<'a, T: Writable + 'a> From<Out<T>> for Arg<'a> {
    fn from(Out(memory): Out<T>) -> Self {
        Arg::new(Value::Word(memory.address()), Kind::Out(memory.pointee()))
    }
}

impl From<usize> for Arg<'_> {
    fn from(count: usize) -> Self {
        Arg::new(Value::Word(count as u64), Kind::Count)
    }
}

impl From<u32> for Arg<'_> {
    fn from(v: u32) -> Self {
        Arg::new(Value::U32(v), Kind::U32)
    }
}

impl From<bool> for Arg<'_> {
    fn from(v: bool) -> Self {
        Arg::from(u32::from(v))
    }
}

impl From<f32> for Arg<'_> {
    fn from(v: f32) -> Self {
        Arg::new(Value::F32(v), Kind::F32)
    }
}

impl<T: Readable> Readable for Option<T> {
    fn address(&self) -> u64 {
        self.as_ref().map_or(0, T::address)
    }
    fn pointee(&self) -> Pointee {
        self.as_ref().map_or(Pointee::Any, T::pointee)
    }
}

impl<T: Writable> Writable for Option<T> {
    fn address(&self) -> u64 {
        self.as_ref().map_or(0, T::address)
    }
    fn pointee(&self) -> Pointee {
        self.as_ref().map_or(Pointee::Any, T::pointee)
    }
}

/// Number types in cudarc's memory, with the kernels' name for each.
pub(crate) trait Number {
    const POINTEE: Pointee;
}

macro_rules! numbers {
    ($($number:ty => $pointee:ident),*) => {
        $(impl Number for $number {
            const POINTEE: Pointee = Pointee::$pointee;
        })*
    };
}
numbers!(f32 => F32, f64 => F64, u32 => U32, u8 => U8, u64 => Table);

macro_rules! memory_of_cudarc {
    ($($side:ident for $memory:ty),*) => {
        $(impl<T: Number> $side for $memory {
            fn address(&self) -> u64 {
                *self.device_ptr()
            }
            fn pointee(&self) -> Pointee {
                T::POINTEE
            }
        })*
    };
}
memory_of_cudarc!(
    Readable for &CudaSlice<T>,
    Readable for CudaView<'_, T>,
    Writable for &mut CudaSlice<T>,
    Writable for CudaViewMut<'_, T>
);

/// Builds the arguments of a kernel, converting each value to an [`Arg`].
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::kernel_args::Arg::from($arg)),*] };
}
pub(crate) use args;
