//! Samples in memory: one tensor on the device, a batch is a selection of its rows.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::batch_writer::{BatchWriter, PixelData};
use super::{LoaderContext, RawBatch};
use crate::libtorch::memory::Bytes;
use crate::util::threads;

pub enum Resident {
    /// A table `[N, F]`, normalised once and for all.
    Table(Tensor),
    /// Pictures that operations of libtorch augment, on the device.
    Pictures(Tensor),
    /// 8-bit pictures on the CPU that one pass brings into the batch, some threads at a time where their levels
    /// are changed first.
    Levels { bytes: Bytes, per_sample: usize, writer: BatchWriter },
}

impl Resident {
    /// `xs` `[N, C, H, W]` or `[N, F]`.
    pub fn new(xs: &Tensor, context: &LoaderContext) -> Result<Self> {
        let &[_, channels, height, width] = xs.size().as_slice() else {
            let xs = context.normalized(xs.to_kind(Kind::Double));
            return Ok(Self::Table(xs.to_kind(context.kind).to_device(context.device)));
        };
        let has_levels = context.pipeline.has_levels();
        if (context.device == Device::Cpu || has_levels) && xs.kind() == Kind::Uint8 {
            let writer = BatchWriter::collecting(&[channels, height, width], context)?;
            if writer.finishes() || has_levels {
                let per_sample = (channels * height * width) as usize;
                return Ok(Self::Levels { bytes: Bytes::new(&xs.contiguous())?, per_sample, writer });
            }
        }
        Ok(Self::Pictures(xs.to_device(context.device)))
    }

    /// The samples of `draws`, all but mixed.
    pub fn assemble(&self, context: &LoaderContext, epoch: u64, draws: &[i64]) -> Result<RawBatch> {
        let indices: Vec<i64> = draws.iter().map(|&draw| context.index(draw)).collect();
        let num_params = context.pipeline.num_params();
        let mut params = Vec::with_capacity(indices.len() * num_params);
        if num_params > 0 {
            for &draw in draws {
                let mut rng = context.augment_rng(epoch, draw as u64);
                context.pipeline.sample(&mut rng, [0, 0], &mut params);
            }
        }
        let xs = match self {
            Resident::Table(xs) => context.pipeline.normalized(context.rows(xs, &indices), &params),
            Resident::Pictures(xs) => context.finish(context.rows(xs, &indices), &params),
            Resident::Levels { bytes, per_sample, writer } => {
                let buffer = writer.buffer(indices.len(), context.device != Device::Cpu)?;
                let write = |(slot, &index): (usize, &i64)| {
                    let planes = &bytes.as_slice()[index as usize * per_sample..][..*per_sample];
                    let row = &params[slot * num_params..][..num_params];
                    let changed =
                        context.pipeline.has_levels().then(|| context.pipeline.levels(planes.to_vec(), row));
                    let planes = changed.as_deref().unwrap_or(planes);
                    writer.write(&buffer, slot, PixelData::Planes(planes), context, row)
                };
                let mut slots = indices.iter().enumerate();
                if context.pipeline.has_levels() {
                    threads::each(context.workers.max(1), slots.collect(), write)
                        .into_iter()
                        .collect::<Result<()>>()?;
                } else {
                    slots.try_for_each(write)?;
                }
                let levels = buffer.into_tensor();
                match writer.finishes() {
                    true => levels,
                    false => {
                        context.finish(levels.to_device_(context.device, levels.kind(), true, false), &params)
                    }
                }
            }
        };
        Ok(RawBatch { xs, indices })
    }
}
