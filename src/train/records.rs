//! What is recorded of training: a line per logged step and per epoch, with the rates in force and statistics of
//! the weights.

use anyhow::Result;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use tch::{Kind, Tensor};

use crate::metrics::Scores;
use crate::nn::layers::ParamKind;
use crate::nn::model::Network;
use crate::penalty::{self, LambdaValues, ParamGroup};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record<'a> {
    Step(&'a StepRecord),
    Epoch(&'a EpochRecord),
}

/// Loss, rates and weight statistics at one optimiser step.
#[derive(Clone, Debug, Serialize)]
pub struct StepRecord {
    /// From 1.
    pub epoch: u64,
    /// Steps made, this one included.
    pub step: u64,
    /// Data loss of this batch, without the penalty and auxiliary heads.
    pub loss: f64,
    /// Σ weight·loss of the auxiliary heads, where the network has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_loss: Option<f64>,
    /// Before the step.
    #[serde(flatten)]
    pub condition: WeightStats,
    /// `loss + aux_loss + penalty`.
    pub total: f64,
    /// The part of `penalty` that is of this batch and not of the weights alone: (λ/2)·mean ‖∂L/∂x‖².
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_gradient: Option<f64>,
    /// ‖g‖₂ over all tensors, before clipping, without the penalty.
    pub grad_norm: f64,
    #[serde(flatten)]
    pub scaling: Option<Scaling>,
    pub images_per_s: f64,
}

/// How the loss is scaled for float16.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scaling {
    /// In the next step.
    pub loss_scale: f64,
    /// Of the whole run so far.
    pub skipped_steps: u64,
}

/// One epoch, and what evaluation said after it.
#[derive(Clone, Debug, Serialize)]
pub struct EpochRecord {
    /// 1 after the first epoch; no whole number within one.
    #[serde(serialize_with = "whole_where_it_is")]
    pub epoch: f64,
    pub step: u64,
    /// Mean data loss over the epoch so far, as trained: augmented, smoothed. NaN (null) where every step was
    /// skipped.
    pub loss: f64,
    /// After the last step of the epoch, of the weights as trained; `lr` and `lambda` are those of that step.
    #[serde(flatten)]
    pub condition: WeightStats,
    /// Statistics of the averaged weights, which `validation` and `test` are scores of and a checkpoint exports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub averaged: Option<Averaged>,
    /// The λs among `lambda` that the validation set tunes, by the label of the group.
    #[serde(skip)]
    pub tuned: Vec<(String, f64)>,
    #[serde(flatten)]
    pub scaling: Option<Scaling>,
    pub images_per_s: f64,
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Scores>,
    /// By the name of the convolution or linear weight, in the order of the network; of the weights as
    /// trained.
    pub layers: Named<Layer>,
}

fn whole_where_it_is<S: Serializer>(epoch: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match epoch.fract() {
        0.0 => serializer.serialize_u64(*epoch as u64),
        _ => serializer.serialize_f64(*epoch),
    }
}

/// The learning rate and λs in force, and statistics of the weights under them.
#[derive(Clone, Debug, Serialize)]
pub struct WeightStats {
    /// The terms of docs/penalties.md over the groups, such as λ₁‖w‖₁ + (λ₂/2)‖w‖₂² (½λ‖w‖₂² for decoupled decay,
    /// which has no objective of its own, and ½(λ/η_peak)‖w‖₂² for relative decay); frozen tensors are no part of it.
    pub penalty: f64,
    /// Of the schedule; a group has its factor of it.
    pub lr: f64,
    /// The λs above 0 by their keys, by the label of the group; groups without any are left out.
    #[serde(skip_serializing_if = "Named::is_empty")]
    pub lambda: Named<Named<f64>>,
    /// ‖w‖₂ over convolution and linear weights.
    pub weight_norm: f64,
    /// Share of exact zeros among those weights.
    pub zeros: f64,
}

/// Statistics of the averaged weights, as in [`WeightStats`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Averaged {
    pub penalty: f64,
    pub weight_norm: f64,
    pub zeros: f64,
}

impl From<WeightStats> for Averaged {
    fn from(WeightStats { penalty, weight_norm, zeros, .. }: WeightStats) -> Self {
        Self { penalty, weight_norm, zeros }
    }
}

/// Values by name, in their own order; a mapping in JSON.
#[derive(Clone, Debug)]
pub struct Named<T>(pub Vec<(String, T)>);

impl<T> Named<T> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Statistics of one weight tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// ‖w‖₂
    pub norm: f64,
    /// Share of exact zeros, in [0, 1].
    pub zeros: f64,
}

impl WeightStats {
    /// `lambdas` are one per group, `initial` one per parameter as [`Optimizer::initial`](crate::optim::Optimizer::initial)
    /// has them, `peak` is what relative decay is relative to; waits for the device.
    pub fn of(
        network: &Network,
        groups: &[ParamGroup],
        lambdas: &[LambdaValues],
        initial: &[Option<Tensor>],
        lr: f64,
        peak: f64,
    ) -> Result<Self> {
        let parameters = network.parameters();
        let mut penalty = 0.0;
        for (group, lambdas) in groups.iter().zip(lambdas) {
            let ws: Vec<_> = group.param_indices.iter().map(|&i| &parameters[i].tensor).collect();
            let initial: Vec<_> = group.param_indices.iter().map(|&i| initial[i].as_ref()).collect();
            penalty += lambdas.value_from(&ws, &initial, peak * group.lr)?.double_value(&[]);
        }
        let (_, ws) = decaying(network);
        Ok(Self {
            penalty,
            lr,
            lambda: lambda_record(groups, lambdas),
            weight_norm: penalty::norm(&ws)?.double_value(&[]),
            zeros: penalty::zeros(&ws)?.double_value(&[]),
        })
    }
}

/// λ of the penalty on the gradient by the inputs, which is of no group.
pub fn of_inputs(lambda: f64) -> (String, Named<f64>) {
    ("inputs".to_owned(), Named(vec![("input_gradient".to_owned(), lambda)]))
}

fn lambda_record(groups: &[ParamGroup], lambdas: &[LambdaValues]) -> Named<Named<f64>> {
    let of = |lambdas: &LambdaValues| {
        Named(lambdas.active().map(|(_, form, lambda)| (form.key().to_owned(), lambda)).collect())
    };
    let all = groups.iter().zip(lambdas).map(|(group, lambdas)| (group.label.clone(), of(lambdas)));
    Named(all.filter(|(_, own)| !own.is_empty()).collect())
}

/// ‖w‖₂ over convolution and linear weights; waits for the device.
pub fn weight_norm(network: &Network) -> Result<f64> {
    Ok(penalty::norm(&decaying(network).1)?.double_value(&[]))
}

/// Norm and zeros of each convolution and linear weight by itself; waits for the device.
pub fn layers(network: &Network) -> Result<Named<Layer>> {
    let (names, ws) = decaying(network);
    let each = |of: fn(&[&Tensor]) -> Result<Tensor>| -> Result<Vec<f64>> {
        let each = ws.iter().map(|w| of(&[*w])).collect::<Result<Vec<_>>>()?;
        if each.is_empty() {
            return Ok(Vec::new());
        }
        // Stacked, so that the device is waited for once and not per tensor.
        Ok(Vec::try_from(Tensor::f_stack(&each, 0)?.f_to_kind(Kind::Double)?)?)
    };
    let (norms, zeros) = (each(penalty::norm)?, each(penalty::zeros)?);
    let layers = norms.into_iter().zip(zeros).map(|(norm, zeros)| Layer { norm, zeros });
    Ok(Named(names.into_iter().zip(layers).collect()))
}

fn decaying(network: &Network) -> (Vec<String>, Vec<&Tensor>) {
    let weights = network.parameters().iter().filter(|p| p.kind == ParamKind::Weight);
    weights.map(|p| (p.name.clone(), &p.tensor)).unzip()
}
