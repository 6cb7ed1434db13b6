//! Protocol buffers, as TensorBoard and ONNX read them: a message is a sequence of fields, each a number with a wire
//! type, followed by its value.

/// The wire type of integers.
const VARINT: u64 = 0;
/// The wire type of `f64`.
const EIGHT_BYTES: u64 = 1;
/// The wire type of text, bytes and messages.
const LENGTH: u64 = 2;
/// The wire type of `f32`.
const FOUR_BYTES: u64 = 5;

/// A message. Fields are written in the order of the calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Creates a message without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the encoded fields.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the encoded fields.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds an integer.
    pub fn integer(&mut self, field: u64, value: i64) -> &mut Self {
        self.tag(field, VARINT);
        self.varint(value as u64);
        self
    }

    /// Adds an `f64`.
    pub fn double(&mut self, field: u64, value: f64) -> &mut Self {
        self.tag(field, EIGHT_BYTES);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// Adds an `f32`.
    pub fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.tag(field, FOUR_BYTES);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// Adds bytes.
    pub fn data(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.tag(field, LENGTH);
        self.varint(value.len() as u64);
        self.bytes.extend(value);
        self
    }

    /// Adds text.
    pub fn text(&mut self, field: u64, value: &str) -> &mut Self {
        self.data(field, value.as_bytes())
    }

    /// Adds another message.
    pub fn message(&mut self, field: u64, value: &Message) -> &mut Self {
        self.data(field, &value.bytes)
    }

    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint((field << 3) | wire_type);
    }

    /// Adds seven bits per byte, lowest first; the high bit marks that more bytes follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 128 {
            self.bytes.push(value as u8 | 128);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_the_bytes_of_the_encoding_guide() {
        // The examples of https://protobuf.dev/programming-guides/encoding.
        assert_eq!(Message::new().integer(1, 150).bytes(), [0x08, 0x96, 0x01]);
        assert_eq!(Message::new().text(2, "testing").bytes(), b"\x12\x07testing");
        let inner = Message::new().integer(1, 150).clone();
        assert_eq!(Message::new().message(3, &inner).bytes(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        // Negative integers take ten bytes; the numbers of fields above 15 take two.
        assert_eq!(
            Message::new().integer(1, -2).bytes()[1..],
            [0xfe, 255, 255, 255, 255, 255, 255, 255, 255, 1]
        );
        assert_eq!(Message::new().integer(20, 2).bytes(), [0xa0, 0x01, 0x02]);
        assert_eq!(Message::new().float(2, 1.0).double(1, 1.0).bytes()[..6], [0x15, 0, 0, 0x80, 0x3f, 0x09]);
    }
}
