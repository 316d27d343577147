//! Samples in memory: one tensor on the device, a batch is a selection of its rows.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::fill::{BatchWriter, PixelData};
use super::{LoaderContext, RawBatch};
use crate::libtorch::memory::Bytes;
use crate::util::rng::{CounterRng, RngStream};

pub enum Resident {
    /// A table `[N, F]`, normalised once and for all.
    Table(Tensor),
    /// Pictures that operations of libtorch augment, on the device.
    Pictures(Tensor),
    /// 8-bit pictures on the CPU that one pass brings into the batch.
    Levels { bytes: Bytes, per_sample: usize, fill: BatchWriter },
}

impl Resident {
    /// `xs` `[N, C, H, W]` or `[N, F]`.
    pub fn new(xs: &Tensor, common: &LoaderContext) -> Result<Self> {
        let &[_, channels, height, width] = xs.size().as_slice() else {
            let xs = common.normalized(xs.to_kind(Kind::Double));
            return Ok(Self::Table(xs.to_kind(common.kind).to_device(common.device)));
        };
        if common.device == Device::Cpu && xs.kind() == Kind::Uint8 {
            let fill = BatchWriter::new(&[channels, height, width], common)?;
            if fill.finishes() {
                let per_sample = (channels * height * width) as usize;
                return Ok(Self::Levels { bytes: Bytes::new(&xs.contiguous())?, per_sample, fill });
            }
        }
        Ok(Self::Pictures(xs.to_device(common.device)))
    }

    /// The samples `indices`, all but mixed.
    pub fn assemble(&self, common: &LoaderContext, epoch: u64, indices: &[i64]) -> Result<RawBatch> {
        let width = common.pipeline.num_params();
        let mut numbers = Vec::with_capacity(indices.len() * width);
        if width > 0 {
            for &index in indices {
                let mut draw = CounterRng::new(common.seed, epoch, index as u64, RngStream::Augment);
                common.pipeline.draw(&mut draw, [0, 0], &mut numbers);
            }
        }
        let xs = match self {
            Resident::Table(xs) => {
                let xs = common.rows(xs, indices);
                if width == 0 {
                    xs
                } else {
                    let params = common.upload(&common.pipeline.tensor(&numbers));
                    common.pipeline.normalized(xs, &params, &numbers)
                }
            }
            Resident::Pictures(xs) => common.finish(common.rows(xs, indices), &numbers),
            Resident::Levels { bytes, per_sample, fill } => {
                let buffer = fill.buffer(indices.len(), false)?;
                for (slot, &index) in indices.iter().enumerate() {
                    let planes = &bytes.as_slice()[index as usize * per_sample..][..*per_sample];
                    let numbers = &numbers[slot * width..][..width];
                    fill.write(&buffer, slot, PixelData::Planes(planes), common, numbers)?;
                }
                buffer.into_tensor()
            }
        };
        Ok(RawBatch { xs, indices: indices.to_vec() })
    }
}
