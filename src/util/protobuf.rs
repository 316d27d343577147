//! Messages of protocol buffers, field by field, as much of the wire format as TensorBoard's events and ONNX
//! models need: <https://protobuf.dev/programming-guides/encoding/>.

const VARINT: u32 = 0;
const DOUBLE: u32 = 1;
const LENGTH: u32 = 2;
const FLOAT: u32 = 5;

/// A message that is being written.
#[derive(Clone, Debug, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    /// A field of an integer; negative ones as their two's complement.
    pub fn integer(&mut self, field: u32, value: i64) -> &mut Self {
        self.key(field, VARINT).varint(value as u64)
    }

    pub fn float(&mut self, field: u32, value: f32) -> &mut Self {
        self.key(field, FLOAT).0.extend(value.to_le_bytes());
        self
    }

    pub fn double(&mut self, field: u32, value: f64) -> &mut Self {
        self.key(field, DOUBLE).0.extend(value.to_le_bytes());
        self
    }

    /// A field of bytes, of text or of a message.
    pub fn bytes(&mut self, field: u32, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.header(field, bytes.len() as u64).0.extend(bytes);
        self
    }

    /// What comes before `len` bytes that are written elsewhere.
    pub fn header(&mut self, field: u32, len: u64) -> &mut Self {
        self.key(field, LENGTH).varint(len)
    }

    /// A packed field of integers.
    pub fn integers(&mut self, field: u32, values: &[i64]) -> &mut Self {
        let mut packed = Self::default();
        for &value in values {
            packed.varint(value as u64);
        }
        self.bytes(field, packed)
    }

    /// A packed field of doubles.
    pub fn doubles(&mut self, field: u32, values: impl Iterator<Item = f64>) -> &mut Self {
        self.bytes(field, values.flat_map(f64::to_le_bytes).collect::<Vec<_>>())
    }

    fn key(&mut self, field: u32, kind: u32) -> &mut Self {
        self.varint(u64::from(field << 3 | kind))
    }

    fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// (number, value of a varint, content of anything longer) of each field of a message, as far as it is whole.
#[derive(Clone, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let size = match (key & 7) as u32 {
            VARINT => return Some((key >> 3, self.varint()?, &[])),
            DOUBLE => 8,
            FLOAT => 4,
            LENGTH => usize::try_from(self.varint()?).ok()?,
            _ => return None,
        };
        let (content, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some((key >> 3, 0, content))
    }
}

impl Fields<'_> {
    /// An integer at the front, which is taken off.
    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut message = Message::default();
        message.integer(1, 300).bytes(2, "text").float(3, 1.5).integers(20, &[-1, 1 << 40]);
        let mut fields = Fields(&message.0);
        assert_eq!(fields.next(), Some((1, 300, &[][..])));
        assert_eq!(fields.next(), Some((2, 0, &b"text"[..])));
        assert_eq!(fields.next(), Some((3, 0, &1.5f32.to_le_bytes()[..])));
        let (number, _, packed) = fields.next().expect("the list");
        let mut packed = Fields(packed);
        assert_eq!((number, packed.varint(), packed.varint()), (20, Some(u64::MAX), Some(1 << 40)));
        assert_eq!((packed.varint(), fields.next()), (None, None));
        // A key of two bytes, and a length beyond the end.
        assert_eq!(Fields(&message.0[..message.0.len() - 1]).count(), 3);
    }
}
