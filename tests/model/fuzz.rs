//! Random layers on random shapes: what the checks accept, libtorch runs, and the shape rule was right.

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::nn::model::{Model, ModelSpec};
use tikhonov::util::rng::{CounterRng, RngStream};

struct Dice(CounterRng);

impl Dice {
    fn below(&mut self, n: u64) -> i64 {
        self.0.below(n) as i64
    }

    fn one(&mut self, choices: &[i64]) -> i64 {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn pair(&mut self, choices: &[i64]) -> Value {
        if self.below(2) == 0 {
            json!(self.one(choices))
        } else {
            json!([self.one(choices), self.one(choices)])
        }
    }

    fn truth(&mut self) -> bool {
        self.below(2) == 0
    }

    fn layer(&mut self) -> Value {
        let sizes = [-1, 0, 1, 1, 2, 2, 3, 4, 5];
        let pads = [-1, 0, 0, 0, 1, 2, 3, 6];
        match self.below(18) {
            0 | 1 => {
                let padding = if self.below(5) == 0 { json!("same") } else { self.pair(&pads) };
                let mode = ["zeros", "reflect", "replicate", "circular"][self.below(4) as usize];
                json!({"conv2d": {"out_channels": self.one(&sizes), "kernel_size": self.pair(&sizes),
                    "stride": self.pair(&[0, 1, 1, 2, 3]), "padding": padding, "dilation": self.pair(&[0, 1, 1, 1, 2]),
                    "groups": self.one(&[0, 1, 1, 2, 3]), "bias": self.truth(), "padding_mode": mode}})
            }
            2 => {
                json!({"conv_transpose2d": {"out_channels": self.one(&sizes), "kernel_size": self.pair(&sizes),
                "stride": self.pair(&[0, 1, 2, 3]), "padding": self.pair(&pads), "output_padding": self.pair(&[0, 0, 1, 2]),
                "dilation": self.pair(&[1, 1, 2]), "groups": self.one(&[1, 1, 2]), "bias": self.truth()}})
            }
            3 => json!({"max_pool2d": {"kernel_size": self.pair(&sizes), "stride": self.pair(&[1, 2, 3, 5]),
                "padding": self.pair(&pads), "dilation": self.pair(&[1, 1, 2]), "ceil_mode": self.truth()}}),
            4 => json!({"avg_pool2d": {"kernel_size": self.pair(&sizes), "stride": self.pair(&[1, 2, 3, 5]),
                "padding": self.pair(&pads), "ceil_mode": self.truth(), "count_include_pad": self.truth()}}),
            5 => json!({"adaptive_avg_pool2d": {"output_size": self.pair(&sizes)}}),
            6 => json!({"adaptive_max_pool2d": {"output_size": self.pair(&sizes)}}),
            7 => json!({"group_norm": {"num_groups": self.one(&sizes)}}),
            8 => json!({"upsample": {"scale_factor": [self.0.uniform() * 3.0, self.0.uniform() * 3.0],
                "mode": if self.truth() { "bilinear" } else { "nearest" }}}),
            9 => json!({"pixel_shuffle": {"upscale_factor": self.one(&sizes)}}),
            10 => json!({"pixel_unshuffle": {"downscale_factor": self.one(&sizes)}}),
            11 => {
                json!({"flatten": {"start_dim": self.one(&[-3, -2, -1, 0, 1, 2, 3]), "end_dim": self.one(&[-3, -2, -1, 1, 2, 3])}})
            }
            12 => {
                json!({"subsample_pad": {"out_channels": self.one(&sizes), "stride": self.one(&[1, 2, 3, 7])}})
            }
            13 => json!({"reshape": {"shape": [self.one(&sizes), self.one(&sizes), self.one(&sizes)]}}),
            14 => {
                json!({"unflatten": {"dim": self.one(&[-1, 0, 1, 2, 3]), "unflattened_size": [self.one(&sizes), self.one(&sizes)]}})
            }
            15 => match self.below(5) {
                0 => json!({"scale": {"parameter": "w", "shape": [self.one(&sizes), self.one(&[1, 1, 2])]}}),
                1 => json!({"scale": {"parameter": "w", "shape": [1, self.one(&sizes), 1, 1]}}),
                2 => {
                    json!({"permute": {"dims": [self.one(&[0, 0, 0, 1]), self.one(&[1, 2, 3]), self.one(&[1, 2, 3]), self.one(&[1, 2])]}})
                }
                3 => json!({"channel_shuffle": {"groups": self.one(&sizes)}}),
                _ => json!({"stochastic_depth": {"p": self.0.uniform() * 1.5 - 0.2, "mode": "row"}}),
            },
            16 => match self.below(7) {
                0 => {
                    json!({"reflection_pad2d": {"padding": [self.one(&pads), self.one(&pads), self.one(&pads), self.one(&pads)]}})
                }
                1 => json!({"replication_pad2d": {"padding": self.one(&pads)}}),
                2 => {
                    json!({"zero_pad2d": {"padding": [self.one(&pads), self.one(&[-3, 0, 1]), -1, self.one(&pads)]}})
                }
                3 => json!({"drop_block2d": {"p": self.0.uniform(), "block_size": self.one(&sizes)}}),
                4 => {
                    json!({"chunk": {"chunks": self.one(&sizes), "index": self.one(&[-1, 0, 0, 1, 2]), "dim": self.one(&[-2, -1, 0, 1, 2])}})
                }
                5 => json!({"instance_norm2d": {"track_running_stats": self.truth()}}),
                _ => {
                    json!({"upsample": {"size": self.pair(&sizes), "mode": "bicubic", "antialias": self.truth()}})
                }
            },
            _ => match self.below(8) {
                0 => json!({"linear": {"out_features": self.one(&sizes)}}),
                1 => json!({"batch_norm2d": {"momentum": null, "track_running_stats": self.truth()}}),
                2 => json!("batch_norm1d"),
                3 => json!("layer_norm"),
                7 => json!({"linear": {"out_features": self.one(&sizes), "in_features": self.one(&sizes)}}),
                4 => json!({"softmax": {"dim": self.one(&[-1, 0, 1, 2, 3, 4])}}),
                5 => json!({"dropout": {"p": self.0.uniform() * 1.5 - 0.2}}),
                _ => json!({"dropout2d": {"p": self.0.uniform()}}),
            },
        }
    }
}

#[test]
fn what_the_checks_accept_runs_and_has_the_promised_shape() {
    let mut accepted = 0;
    for index in 0..12_000 {
        let mut dice = Dice(CounterRng::new(1, 0, index, RngStream::Augment));
        let input = match dice.below(5) {
            0 => vec![dice.one(&[1, 2, 6, 24])],
            1 => vec![dice.one(&[1, 2, 6]), dice.one(&[1, 2, 5])],
            _ => vec![dice.one(&[1, 2, 3, 4, 8]), dice.one(&[1, 2, 5, 6]), dice.one(&[1, 3, 4, 6])],
        };
        let layers: Vec<Value> = (0..1 + dice.below(2)).map(|_| dice.layer()).collect();
        let shown = format!("{layers:?} on {input:?}");
        let spec: ModelSpec =
            serde_json::from_value(json!({"input": input, "layers": layers})).expect("a spec");
        let Ok(model) = Model::from_spec(&spec) else { continue };
        accepted += 1;
        let network =
            model.build(Device::Cpu, Kind::Float).unwrap_or_else(|error| panic!("{shown}: {error:#}"));
        for train in [false, true] {
            let xs = Tensor::ones([&[2], input.as_slice()].concat(), (Kind::Float, Device::Cpu));
            let ys = tikhonov::libtorch::catch_panics(|| network.forward(&xs, train));
            let ys = ys.unwrap_or_else(|error| panic!("{shown}: {error:#}"));
            assert_eq!(ys.size(), [&[2], model.output()].concat(), "{shown}");
        }
    }
    assert!(accepted > 1000, "only {accepted} were accepted: the test says little");
}
