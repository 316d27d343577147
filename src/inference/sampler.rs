//! A trained variational autoencoder at work: images of codes drawn from the prior, of a plane of codes, and
//! of the codes between those of two images.

use std::path::Path;

use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};

use crate::data::image::photo::Photo;
use crate::data::{Fit, ImageFile, Mode};
use crate::inference::loaded_model::LoadedModel;
use crate::libtorch::catch_panics;
use crate::libtorch::device;
use crate::nn::model::{Model, Network};
use crate::tasks::{Generation, TaskSpec};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// Codes that the decoder gets at once.
const BATCH: i64 = 64;
/// Black pixels around each image of a grid, as torchvision's `make_grid` has them.
const BORDER: usize = 2;

pub struct Sampler {
    network: Network,
    /// The shape of one code.
    code: Vec<i64>,
    /// How an image file becomes what the encoder sees.
    rules: (Mode, Fit),
}

/// How one gets from a code to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Route {
    /// Along an arc about the origin, where the prior's codes lie (White 2016).
    #[default]
    Spherical,
    Linear,
}

impl Sampler {
    /// Exit 2 where the run is no generation of grey or RGB images.
    pub fn new(trained: &LoadedModel, name: &Path) -> Result<Self> {
        let spec = &trained.config.spec;
        if !matches!(spec.task, TaskSpec::Generation(_)) {
            return Err(fail(
                ExitCode::Usage,
                format!("{} is no generation: nothing can be drawn from it", name.display()),
            ));
        }
        let model: &Model = &trained.plan.model;
        let code = Generation::code(model)?.to_vec();
        let rules = spec.data.picture_rules(model.input())?;
        if model.output().first() != model.input().first() {
            let message =
                format!("the network gives {:?}, which is no image as it takes them", model.output());
            return Err(fail(ExitCode::Usage, message));
        }
        Ok(Self { network: trained.network()?, code, rules })
    }

    /// The shape of one code.
    pub fn code(&self) -> &[i64] {
        &self.code
    }

    /// `count` codes of the prior: `torch.manual_seed(seed); torch.randn(count, *code)` on the CPU.
    pub fn prior(&self, count: i64, seed: u64) -> Result<Tensor> {
        device::seed(seed);
        Ok(Tensor::f_randn(self.codes(count), (Kind::Float, Device::Cpu))?)
    }

    /// `side`² codes, row by row: the first two values at `side` equally probable places of the normal
    /// distribution (Kingma & Welling 2014, figure 4), the first rising to the right, the second upwards; the
    /// others 0.
    pub fn plane(&self, side: i64) -> Result<Tensor> {
        if self.code.first().is_none_or(|&values| values < 2) {
            let message = format!("a grid spans two values of the code, and this one has {:?}", self.code);
            return Err(fail(ExitCode::Usage, message));
        }
        let shares = (Tensor::f_arange(side, (Kind::Double, Device::Cpu))? + 0.5) / side as f64;
        let places = shares.f_special_ndtri()?.f_to_kind(Kind::Float)?;
        let codes = Tensor::f_zeros(self.codes(side * side), (Kind::Float, Device::Cpu))?;
        // Codes with more axes than one have the same values everywhere.
        let axes = [&[side * side][..], &vec![1; self.code.len() - 1]].concat();
        for (value, places) in
            [(0, places.repeat([side])), (1, places.flip([0]).repeat_interleave_self_int(side, None, None))]
        {
            codes.f_select(1, value)?.f_copy_(&places.f_view(axes.as_slice())?)?;
        }
        Ok(codes)
    }

    /// The mean of the code of an image file, brought to the size of the network. Exit 3 where it cannot be
    /// read.
    pub fn mean(&self, path: &Path) -> Result<Tensor> {
        let (mode, fit) = &self.rules;
        let file = ImageFile::new(path, *mode);
        let picture = fit.whole(&file.decode().with_exit_code(ExitCode::Data, || path.display())?);
        let size = [1, picture.channels as i64, picture.height as i64, picture.width as i64];
        let xs = Tensor::f_from_slice(&picture.planes())?.f_view(size)?.f_to_device(self.network.device())?;
        let xs = xs.f_to_kind(self.network.kind())? / 255.0;
        catch_panics(|| no_grad(|| Generation::means(&self.network, &xs)))?
    }

    /// The images of codes, `columns` of them in a row.
    pub fn grid(&self, codes: &Tensor, columns: usize) -> Result<Photo> {
        let count = codes.size()[0];
        let mut photo: Option<Photo> = None;
        for first in (0..count).step_by(BATCH as usize) {
            let some = codes.f_narrow(0, first, BATCH.min(count - first))?;
            let some = some.f_to_device(self.network.device())?.f_to_kind(self.network.kind())?;
            let images = catch_panics(|| no_grad(|| Generation::images(&self.network, &some)))??;
            let &[_, channels, height, width] = images.size().as_slice() else {
                return Err(fail(
                    ExitCode::Usage,
                    format!("the decoder gives {:?}, and no images", images.size()),
                ));
            };
            let (height, width) = (height as usize, width as usize);
            let rows = (count as usize).div_ceil(columns);
            let side = |tiles: usize, side: usize| tiles * (side + BORDER) + BORDER;
            let photo = photo.get_or_insert_with(|| {
                Photo::black(side(columns, width), side(rows, height), channels as usize)
            });
            for (at, image) in (first as usize..).zip(images.split(1, 0)) {
                photo.put(&image, side(at / columns, height), side(at % columns, width))?;
            }
        }
        photo.with_exit_code(ExitCode::Usage, || "there is no code to make an image of")
    }

    fn codes(&self, count: i64) -> Vec<i64> {
        [&[count], self.code.as_slice()].concat()
    }
}

/// `steps` codes from `a` to `b` `[1, Z, …]`, both included; `steps` is 2 or more.
pub fn between(a: &Tensor, b: &Tensor, steps: i64, route: Route) -> Tensor {
    let (flat_a, flat_b) = (a.to_kind(Kind::Double).view([-1]), b.to_kind(Kind::Double).view([-1]));
    let cosine = flat_a.dot(&flat_b) / (flat_a.norm() * flat_b.norm());
    let angle = cosine.clamp(-1.0, 1.0).acos().double_value(&[]);
    // There is no one arc between a code and itself, its opposite or the origin.
    let is_arc = route == Route::Spherical && angle.sin() > 1e-6;
    let codes = (0..steps).map(|step| {
        let share = step as f64 / (steps - 1) as f64;
        let [from, to] = match is_arc {
            true => [1.0 - share, share].map(|share| (share * angle).sin() / angle.sin()),
            false => [1.0 - share, share],
        };
        a * from + b * to
    });
    Tensor::cat(&codes.collect::<Vec<_>>(), 0)
}
