//! Which process of a job this is: from torchrun's environment variables, or SLURM's.

use anyhow::Result;

use crate::util::exit_code::{ExitCode, fail};

/// One process of a job, and where the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistributedEnv {
    /// From 0 to `world_size` - 1.
    pub rank: usize,
    pub world_size: usize,
    /// The same among the processes of this machine.
    pub local_rank: usize,
    pub local_world_size: usize,
    pub master_addr: String,
    pub master_port: u16,
    /// The launcher hosts the store; else rank 0 does.
    pub agent_store: bool,
    /// How often torchrun has started the job anew.
    pub restarts: u64,
    /// Whether torchrun started this process.
    pub is_torchrun: bool,
}

impl DistributedEnv {
    /// None where this process is no part of a job of several. Exit 2 where variables contradict each other or some
    /// are missing.
    pub fn read() -> Result<Option<Self>> {
        Self::of(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        match (variable("RANK"), variable("WORLD_SIZE")) {
            (None, None) => Self::of_slurm(variable),
            (Some(rank), Some(size)) => {
                let number = |name: &str, value: Option<String>, or: usize| match value {
                    Some(value) => parse(name, &value),
                    None => Ok(or),
                };
                let (rank, world_size) = (parse("RANK", &rank)?, parse("WORLD_SIZE", &size)?);
                let env = Self {
                    rank,
                    world_size,
                    local_rank: number("LOCAL_RANK", variable("LOCAL_RANK"), rank)?,
                    local_world_size: number("LOCAL_WORLD_SIZE", variable("LOCAL_WORLD_SIZE"), world_size)?,
                    master_addr: needed(variable, "MASTER_ADDR")?,
                    master_port: parse("MASTER_PORT", &needed(variable, "MASTER_PORT")?)?,
                    agent_store: variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
                    restarts: match variable("TORCHELASTIC_RESTART_COUNT") {
                        Some(count) => parse("TORCHELASTIC_RESTART_COUNT", &count)?,
                        None => 0,
                    },
                    is_torchrun: variable("TORCHELASTIC_RUN_ID").is_some(),
                };
                env.checked().map(|env| (env.world_size > 1).then_some(env))
            }
            (rank, _) => {
                let (there, missing) =
                    if rank.is_some() { ("RANK", "WORLD_SIZE") } else { ("WORLD_SIZE", "RANK") };
                let message = format!(
                    "the environment variable {there} is set and {missing} is not: start the processes with torchrun or \
                     srun, or unset {there} to train in one process"
                );
                Err(fail(ExitCode::Usage, message))
            }
        }
    }

    /// A step of `srun` with several tasks.
    fn of_slurm(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let (Some(rank), Some(size)) = (variable("SLURM_PROCID"), variable("SLURM_STEP_NUM_TASKS")) else {
            return Ok(None);
        };
        let (rank, world_size): (usize, usize) =
            (parse("SLURM_PROCID", &rank)?, parse("SLURM_STEP_NUM_TASKS", &size)?);
        if world_size < 2 {
            return Ok(None);
        }
        let job: u64 = parse("SLURM_JOB_ID", &needed(variable, "SLURM_JOB_ID")?)?;
        let step: u64 = variable("SLURM_STEP_ID").map_or(Ok(0), |step| parse("SLURM_STEP_ID", &step))?;
        let nodes: usize =
            variable("SLURM_STEP_NUM_NODES").map_or(Ok(1), |nodes| parse("SLURM_STEP_NUM_NODES", &nodes))?;
        let master_addr = match variable("MASTER_ADDR") {
            Some(host) => host,
            None => first_host(&needed(variable, "SLURM_STEP_NODELIST")?),
        };
        let master_port = match variable("MASTER_PORT") {
            Some(port) => parse("MASTER_PORT", &port)?,
            // One that no other job of the same machine takes, with some luck.
            None => 20_000 + ((job * 7 + step) % 20_000) as u16,
        };
        let env = Self {
            rank,
            world_size,
            local_rank: parse("SLURM_LOCALID", &needed(variable, "SLURM_LOCALID")?)?,
            local_world_size: world_size.div_ceil(nodes.max(1)),
            master_addr,
            master_port,
            agent_store: false,
            restarts: 0,
            is_torchrun: false,
        };
        env.checked().map(Some)
    }

    fn checked(self) -> Result<Self> {
        let Self { rank, world_size, local_rank, local_world_size, .. } = self;
        let wrong = match (rank < world_size, local_rank < local_world_size, local_world_size <= world_size) {
            (false, ..) => format!("RANK is {rank} and WORLD_SIZE {world_size}"),
            (_, false, _) => format!("LOCAL_RANK is {local_rank} and LOCAL_WORLD_SIZE {local_world_size}"),
            (.., false) => format!("LOCAL_WORLD_SIZE is {local_world_size} and WORLD_SIZE {world_size}"),
            _ => return Ok(self),
        };
        let message = format!("the environment says that {wrong}: ranks count from 0 to one below the size");
        Err(fail(ExitCode::Usage, message))
    }
}

fn needed(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<String> {
    variable(name).ok_or_else(|| {
        let message = format!(
            "the environment variable {name} is not set, which a job of several processes needs: start it with torchrun \
             or srun"
        );
        fail(ExitCode::Usage, message)
    })
}

fn parse<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| {
        fail(
            ExitCode::Usage,
            format!("the environment variable {name} is `{value}`, which is no number for it"),
        )
    })
}

/// The first machine of SLURM's list: `node[03-05,9],other` is `node03`.
fn first_host(list: &str) -> String {
    match list.split_once('[') {
        Some((stem, rest)) if !stem.contains(',') => {
            let first: String = rest.chars().take_while(char::is_ascii_digit).collect();
            format!("{stem}{first}")
        }
        _ => list.split(',').next().unwrap_or(list).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<DistributedEnv>> {
        DistributedEnv::of(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn torchruns_variables_say_which_process_this_is() {
        let mut variables = vec![
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("TORCHELASTIC_RUN_ID", "none"),
        ];
        let env = read(&variables).unwrap().unwrap();
        assert_eq!((env.rank, env.local_rank, env.local_world_size, env.restarts), (3, 1, 2, 2));
        assert!(env.agent_store && env.is_torchrun);
        for (at, (wrong, says)) in [("4", "RANK is 4"), ("x", "`x`"), ("-1", "`-1`")].into_iter().enumerate()
        {
            variables[0].1 = wrong;
            let message = read(&variables).unwrap_err().to_string();
            assert!(message.contains(says), "{at}: {message}");
        }
        assert!(read(&[]).unwrap().is_none());
        assert!(read(&[("RANK", "0")]).unwrap_err().to_string().contains("WORLD_SIZE is not"));
        assert!(read(&[("WORLD_SIZE", "2")]).unwrap_err().to_string().contains("RANK is not"));
        let message = read(&[("RANK", "0"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(message.contains("MASTER_ADDR is not set"), "{message}");
    }

    #[test]
    fn a_step_of_srun_is_a_job_and_a_batch_script_is_none() {
        let step = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NUM_NODES", "2"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
            ("SLURM_JOB_ID", "4711"),
        ];
        let env = read(&step).unwrap().unwrap();
        assert_eq!((env.rank, env.world_size, env.local_rank, env.local_world_size), (5, 8, 1, 4));
        assert_eq!((env.master_addr.as_str(), env.master_port), ("gpu07", 20_000 + 4711 * 7 % 20_000));
        assert!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap().is_none());
        for (list, first) in [("a,b", "a"), ("a", "a"), ("n[1,3-4],m", "n1"), ("login,n[1-2]", "login")] {
            assert_eq!(first_host(list), first, "{list}");
        }
    }
}
