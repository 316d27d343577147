//! A run's checkpoint as the dict that a Python training script saves and goes on from: weights, optimiser,
//! epoch.

use anyhow::{Context, Result};
use tch::Tensor;

use crate::checkpoint::{Loaded, State};
use crate::config::{Budget, RunConfig};
use crate::nn::layers::ParamKind;
use crate::nn::model::Model;
use crate::penalty::{self, ParamGroup};
use crate::pytorch::optimizer_state::{self, Resumable};
use crate::pytorch::writer::Value;
use crate::schedule::{Plateau, ScheduleSpec, ScheduleStep, total_of_share};
use crate::util::exit_code::{ExitCode, WithExitCode};

/// `{model, optimizer, epoch, step}`, and `ema` where the run averages its weights; beside it what Python
/// should know, such as a penalty that `torch.optim` does not have. `model` holds the weights that the
/// optimiser moves, never the averaged ones. Exit 4 where the checkpoint is not of this network. `groups` are
/// the penalty's, of the model's trainable parameters.
pub fn python_checkpoint(
    spec: &RunConfig,
    model: &Model,
    groups: &[ParamGroup],
    loaded: &Loaded,
) -> Result<(Value, Vec<String>)> {
    let context = || format!("checkpoint {}", loaded.folder.display());
    let named = |tensors: &std::collections::BTreeMap<String, Tensor>| -> Result<Vec<(String, Tensor)>> {
        let params = model.params().iter();
        params
            .map(|param| {
                let tensor =
                    tensors.get(&param.name).with_context(|| format!("{} is missing", param.name))?;
                Ok((param.name.clone(), tensor.shallow_clone()))
            })
            .collect::<Result<_>>()
            .with_exit_code(ExitCode::Checkpoint, context)
    };
    let weights = named(&loaded.model)?;
    let mut notes = Vec::new();
    let state = &loaded.state;
    let budget = spec.train.budget();
    let clock = clock(state, spec.train.accumulate as u64, budget);
    let moves = spec.schedule != ScheduleSpec::default();
    if clock.is_none() && moves {
        notes.push(format!(
            "step {} of the first epoch does not tell where the schedule stands: `lr` is the optimizer's own, {}",
            state.step,
            spec.optimizer.lr()
        ));
    }
    let plateau = match &state.plateau {
        serde_json::Value::Null => Plateau::default(),
        saved => serde_json::from_value(saved.clone())
            .context("the schedule's state")
            .with_exit_code(ExitCode::Checkpoint, context)?,
    };
    let lr =
        clock.map_or(spec.optimizer.lr(), |clock| spec.schedule.lr(spec.optimizer.lr(), clock, &plateau));
    if lr == 0.0 {
        notes.push(format!(
            "the schedule is over, so `lr` is 0.0 and a script that trains on would change nothing: set it, as in for g in \
             optimizer.param_groups: g['lr'] = {}",
            spec.optimizer.lr()
        ));
    }
    let total_steps = budget.steps(1).unwrap_or(state.step);
    let start = ScheduleStep { step: state.step, steps_per_epoch: 1, total_steps };
    let mut lambdas: Vec<_> = groups.iter().map(|group| group.lambdas(clock.unwrap_or(start))).collect();
    penalty::apply_tuned(groups, &mut lambdas, &state.tuned);
    let params: Vec<_> = (model.params().iter().zip(&weights))
        .filter(|(param, _)| param.is_trainable())
        .map(|(_, (name, tensor))| (name.clone(), tensor.shallow_clone()))
        .collect();
    let resumable = Resumable {
        spec: &spec.optimizer,
        lr,
        peak: spec.schedule.peak(spec.optimizer.lr()),
        params: &params,
        groups,
        lambdas: &lambdas,
        state: &loaded.optimizer,
    };
    let (optimizer, more) =
        optimizer_state::state_dict(&resumable).with_exit_code(ExitCode::Checkpoint, context)?;
    notes.extend(more);
    let frozen =
        model.params().iter().filter(|param| param.kind != ParamKind::Buffer && !param.is_trainable());
    let frozen = frozen.count();
    if frozen > 0 {
        notes.push(format!(
            "{frozen} parameters are frozen: the optimizer holds only the others, by name in `param_names`. Make Python's as \
             torch.optim.{}([{{**g, 'params': [params[n] for n in g['param_names']]}} for g in file['optimizer']['param_groups']]), \
             params = dict(net.named_parameters())",
            spec.optimizer.torch_class().name
        ));
    }
    let mut items = vec![("model", Value::state_dict(&weights)), ("optimizer", optimizer)];
    if let Some(ema) = &loaded.ema {
        items.push(("ema", Value::state_dict(&named(ema)?)));
    }
    items.push(("epoch", Value::Int(i64::try_from(state.epoch)?)));
    items.push(("step", Value::Int(i64::try_from(state.step)?)));
    Ok((Value::dict(items), notes))
}

/// The position in the schedule. How many steps an epoch has only the data says, or the epochs that are over.
fn clock(state: &State, accumulate: u64, budget: Budget) -> Option<ScheduleStep> {
    let in_epoch = (state.batch as u64).div_ceil(accumulate.max(1));
    let steps_per_epoch = state.step.checked_sub(in_epoch)?.checked_div(state.epoch)?;
    let total_steps = match budget {
        Budget::Hours(hours) => total_of_share(state.step, state.seconds / (hours * 3600.0)),
        budget => budget.steps(steps_per_epoch)?,
    };
    Some(ScheduleStep { step: state.step, steps_per_epoch, total_steps })
}
