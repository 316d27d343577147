//! The tables of a JPEG file: steps of quantization, Huffman codes, the distance between restarts.

use super::entropy::{Huffman, ZIGZAG};

/// Those in force at some point of the file; later segments replace them.
#[derive(Clone, Default)]
pub struct Tables {
    pub quantizers: [Option<[i32; 64]>; 4],
    pub dc: [Option<Box<Huffman>>; 4],
    pub ac: [Option<Box<Huffman>>; 4],
    /// MCUs between restarts; 0 for none.
    pub restart: usize,
}

impl Tables {
    /// Takes the tables of a segment; None where there are none.
    pub fn read(&mut self, marker: u8, mut segment: &[u8]) -> Option<()> {
        match marker {
            0xdb => {
                while let &[what, ref rest @ ..] = segment {
                    segment = self.read_quantizer(what, rest)?;
                }
            }
            0xc4 => {
                while let &[what, ref rest @ ..] = segment {
                    segment = self.read_huffman(what, rest)?;
                }
            }
            0xdd => self.restart = u16::from_be_bytes(*segment.first_chunk()?).into(),
            _ => return None,
        }
        Some(())
    }

    fn read_quantizer<'a>(&mut self, what: u8, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (steps, rest): (Vec<i32>, _) = match what >> 4 {
            0 => {
                let (steps, rest) = rest.split_first_chunk::<64>()?;
                (steps.map(i32::from).to_vec(), rest)
            }
            _ => {
                let (steps, rest) = rest.split_first_chunk::<128>()?;
                (steps.as_chunks().0.iter().map(|&step| u16::from_be_bytes(step).into()).collect(), rest)
            }
        };
        let quantizer = self.quantizers.get_mut(usize::from(what & 15))?.insert([0; 64]);
        for (&at, step) in ZIGZAG.iter().zip(steps) {
            quantizer[usize::from(at)] = step;
        }
        Some(rest)
    }

    fn read_huffman<'a>(&mut self, what: u8, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (counts, rest) = rest.split_first_chunk::<16>()?;
        let total = counts.iter().map(|&count| usize::from(count)).sum();
        let (symbols, rest) = rest.split_at_checked(total)?;
        let tables = match what >> 4 {
            0 => &mut self.dc,
            1 => &mut self.ac,
            _ => return None,
        };
        *tables.get_mut(usize::from(what & 15))? = Some(Huffman::new(counts, symbols)?);
        Some(rest)
    }
}
