//! Valid and invalid files in NumPy's format, for tests of readers.

/// Returns a file of version 1 as `numpy.save` writes it: values of the type `descr`, such as `<f4`, the
/// Python tuple `shape`, and the bytes of the values. Nothing is checked: the parts may be inconsistent.
pub fn file(descr: &str, fortran_order: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if fortran_order { "True" } else { "False" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    // Magic, version, length and line break take 11 bytes; the values begin at a multiple of 64.
    header.push_str(&" ".repeat((11 + header.len()).next_multiple_of(64) - 11 - header.len()));
    header.push('\n');
    [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Returns a file of 32-bit floats.
pub fn floats(shape: &str, values: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    file("<f4", false, shape, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_numpys() {
        // numpy.save(f, numpy.array([1, -2], dtype='<f4')), NumPy 2
        let mut saved = b"\x93NUMPY\x01\x00v\x00".to_vec();
        saved.extend(
            format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }").bytes(),
        );
        saved.extend(b"\x00\x00\x80\x3f\x00\x00\x00\xc0");
        assert_eq!(floats("(2,)", &[1.0, -2.0]), saved);
    }
}
