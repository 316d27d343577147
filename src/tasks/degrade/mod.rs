//! What is done to an image before the network sees it: one file per degradation, several make a chain.
//!
//! Written as a name, as `{gaussian: {sigma: 25}}`, or as a list of those, applied in its order. Everything
//! happens in batches, where the images are, and draws from libtorch's generator alone: the same seed
//! repeats the degradation. A value given as `[low, high]` is drawn per image, uniformly, while training;
//! evaluation takes the middle, so that its scores are comparable. Where pixels go missing they go missing in
//! evaluation too.

mod blur;
mod gaussian;
mod inpainting;
mod jpeg;
mod level;
mod poisson;
mod salt_pepper;
mod super_resolution;

use std::fmt;

use anyhow::Result;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use tch::Tensor;

use crate::util::json_schema::Either;
use crate::util::tagged_enum::{self, Tagged};
use crate::util::yaml::Invalid;

/// The side of images of any size in checks; every scale divides it.
pub(crate) const ANY_SIZE: i64 = 840;

/// One way to spoil images.
pub(crate) trait Degradation {
    /// Refuses values out of range; paths are relative to the degradation.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// Whether images of this shape can be degraded so; the message ends with the remedy.
    fn check(&self, _image: [i64; 3]) -> Result<()> {
        Ok(())
    }

    /// Degrades floating-point images `[N, C, H, W]` in [0, 1], whose sides [`Degradation::scale`] divides.
    fn apply(&self, images: &Tensor, train: bool) -> Result<Tensor>;

    /// What the network sees of images that are degraded already.
    fn present(&self, images: Tensor) -> Tensor {
        images
    }

    /// By what the resolution is divided.
    fn scale(&self) -> i64 {
        1
    }

    /// The shape of what [`Degradation::apply`] makes of an image.
    fn output(&self, image: [i64; 3]) -> [i64; 3] {
        image
    }
}

macro_rules! degradations {
    ($($name:literal => $variant:ident($spec:ty),)*) => {
        /// One degradation as declared.
        #[derive(Clone, Debug, JsonSchema)]
        pub enum DegradeSpec {
            $(#[schemars(rename = $name)] $variant($spec),)*
        }

        impl DegradeSpec {
            fn degradation(&self) -> &dyn Degradation {
                match self {
                    $(Self::$variant(spec) => spec,)*
                }
            }

            fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }
        }

        impl Serialize for DegradeSpec {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$variant(spec) => serializer.collect_map([($name, spec)]),)*
                }
            }
        }

        impl Tagged for DegradeSpec {
            const WHAT: &'static str = "a degradation";
            const NAMES: &'static [&'static str] = &[$($name),*];

            fn body<'de, D: Deserializer<'de>>(name: &str, body: D) -> Result<Self, D::Error> {
                match name {
                    $($name => tagged_enum::spec(body).map(Self::$variant),)*
                    _ => Err(D::Error::unknown_variant(name, Self::NAMES)),
                }
            }
        }
    };
}

degradations! {
    "blur" => Blur(blur::Blur),
    "gaussian" => Gaussian(gaussian::Gaussian),
    "inpainting" => Inpainting(inpainting::Inpainting),
    "jpeg" => Jpeg(jpeg::Jpeg),
    "none" => None(Nothing),
    "poisson" => Poisson(poisson::Poisson),
    "salt_pepper" => SaltPepper(salt_pepper::SaltPepper),
    "super_resolution" => SuperResolution(super_resolution::SuperResolution),
}

impl<'de> Deserialize<'de> for DegradeSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        tagged_enum::deserialize(deserializer)
    }
}

/// No degradation: the network is an autoencoder, or the data are pairs of a degraded image and its target.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl Degradation for Nothing {
    fn apply(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(images.shallow_clone())
    }
}

/// Degradations, applied in order.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(with = "Either<DegradeSpec, Vec<DegradeSpec>>")]
pub struct Chain(Vec<DegradeSpec>);

impl Default for Chain {
    /// Gaussian noise of σ = 25.
    fn default() -> Self {
        Self(vec![DegradeSpec::Gaussian(gaussian::Gaussian::default())])
    }
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Chain;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a degradation ({}) or a list of them", DegradeSpec::NAMES.join(", "))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Chain, E> {
                Ok(Chain(vec![tagged_enum::from_name(name)?]))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Chain, A::Error> {
                Ok(Chain(vec![DegradeSpec::deserialize(MapAccessDeserializer::new(map))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Chain, A::Error> {
                let mut chain = Vec::new();
                while let Some(step) = list.next_element()? {
                    chain.push(step);
                }
                Ok(Chain(chain))
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

impl Chain {
    fn steps(&self) -> impl DoubleEndedIterator<Item = &dyn Degradation> {
        self.0.iter().map(DegradeSpec::degradation)
    }

    /// Paths are relative to `degrade`.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.0.is_empty() {
            return Err(Invalid::new("", "the list is empty; write `none` for no degradation"));
        }
        for (index, spec) in self.0.iter().enumerate() {
            let last = index + 1 == self.0.len();
            let checked = match spec {
                DegradeSpec::Gaussian(gaussian) if gaussian.map && !last => Err(Invalid::new(
                    "map",
                    "adds a channel that later degradations would take for the image's",
                )),
                _ => spec.degradation().validate(),
            };
            let place =
                if self.0.len() == 1 { spec.name().into() } else { format!("{index}.{}", spec.name()) };
            checked.map_err(|invalid| invalid.under(place))?;
        }
        Ok(())
    }

    /// Whether images of this shape can be degraded so.
    pub fn check(&self, image: [i64; 3]) -> Result<()> {
        let mut shape = image;
        for step in self.steps() {
            step.check(shape)?;
            shape = step.output(shape);
        }
        Ok(())
    }

    /// Degrades floating-point images `[N, C, H, W]` in [0, 1], whose sides [`Chain::scale`] divides.
    pub fn apply(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.steps().try_fold(images.shallow_clone(), |images, step| step.apply(&images, train))
    }

    /// What the network sees of images that are degraded already.
    pub fn present(&self, images: Tensor) -> Tensor {
        self.steps().fold(images, |images, step| step.present(images))
    }

    /// By what the resolution is divided, all in all.
    pub fn scale(&self) -> i64 {
        self.steps().map(Degradation::scale).product()
    }

    /// The shape of what the network sees of an image.
    pub fn output(&self, image: [i64; 3]) -> [i64; 3] {
        self.steps().fold(image, |shape, step| step.output(shape))
    }

    /// Whether the network sees a smaller image than it answers.
    pub fn shrinks(&self) -> bool {
        self.steps().any(|step| step.output([1, ANY_SIZE, ANY_SIZE])[1] < ANY_SIZE)
    }

    /// Whether nothing happens.
    pub fn is_none(&self) -> bool {
        self.0.iter().all(|spec| matches!(spec, DegradeSpec::None(_)))
    }
}
