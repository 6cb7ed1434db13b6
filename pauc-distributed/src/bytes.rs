//! Numbers as the bytes that a communicator moves.

/// A number without padding, for which every bit pattern is valid.
///
/// # Safety
/// The type must have no padding, and every bit pattern of its size must be a valid value.
pub unsafe trait Plain: Copy {}

/// Implements [`Plain`] for primitive numbers.
macro_rules! plain {
    ($($number:ty),*) => {
        // SAFETY: primitive numbers have no padding and no invalid bits.
        $(unsafe impl Plain for $number {})*
    };
}

plain!(u8, u32, u64, usize, i32, i64, f32, f64);

/// Returns the bytes of numbers, in the order of this machine.
pub fn bytes_of<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: the slice is initialized and has no padding, and any address is aligned for bytes.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Returns the bytes of numbers, to write to.
pub fn bytes_of_mut<T: Plain>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`; any bytes are valid numbers. The slice is borrowed for as long as its bytes.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}

/// Returns the numbers of several messages, one message after the other. Trailing bytes that are not a whole number
/// are dropped.
pub fn joined<T: Plain + Default>(messages: &[Vec<u8>]) -> Vec<T> {
    let bytes = messages.concat();
    let mut numbers = vec![T::default(); bytes.len() / size_of::<T>()];
    let whole = size_of_val(&*numbers);
    bytes_of_mut(&mut numbers).copy_from_slice(&bytes[..whole]);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_as_bytes() {
        let numbers = [1.5f32, f32::NAN, -0.0, f32::INFINITY];
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        assert_eq!(bytes_of(&numbers), bytes);
        let mut copy = [0f32; 4];
        bytes_of_mut(&mut copy).copy_from_slice(&bytes);
        assert_eq!(copy.map(f32::to_bits), numbers.map(f32::to_bits));
        assert!(bytes_of::<u64>(&[]).is_empty());
        let messages = [bytes_of(&[1.5f32]).to_vec(), Vec::new(), bytes_of(&[-2.0f32, 4.0]).to_vec()];
        assert_eq!(joined::<f32>(&messages), [1.5, -2.0, 4.0]);
    }
}
