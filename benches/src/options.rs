//! What all measurements take.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Clone, clap::Args)]
pub struct Options {
    /// How often each has its turn
    #[arg(long, global = true, default_value_t = 5)]
    pub rounds: usize,
    /// How long a turn takes
    #[arg(long, global = true, default_value_t = 3.0)]
    pub seconds: f64,
    /// Connections of the load, where a measurement doesn't say otherwise
    #[arg(long, global = true, default_value_t = 32)]
    pub connections: usize,
    /// The core of what is measured
    #[arg(long, global = true, default_value_t = 0)]
    pub server_core: usize,
    /// The core of the load
    #[arg(long, global = true, default_value_t = 1)]
    pub load_core: usize,
    /// Fewer and shorter rounds, for a look
    #[arg(long, global = true)]
    pub quick: bool,
    /// Only those whose names contain one of these, such as `kvasar,redis`
    #[arg(long, global = true, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Also draw charts, into this folder
    #[arg(long, global = true, value_name = "FOLDER")]
    pub charts: Option<PathBuf>,
}

impl Options {
    pub fn rounds(&self) -> usize {
        if self.quick { 3 } else { self.rounds }
    }

    pub fn round(&self) -> Duration {
        if self.quick { Duration::from_secs(1) } else { Duration::from_secs_f64(self.seconds) }
    }

    /// The server's core as tools take it.
    pub fn server_cores(&self) -> String {
        self.server_core.to_string()
    }

    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// As arguments again, for another process of this program.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--rounds={}", self.rounds),
            format!("--seconds={}", self.seconds),
            format!("--connections={}", self.connections),
            format!("--server-core={}", self.server_core),
            format!("--load-core={}", self.load_core),
        ];
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments.extend((!self.only.is_empty()).then(|| format!("--only={}", self.only.join(","))));
        arguments.extend(self.charts.iter().map(|folder| format!("--charts={}", folder.display())));
        arguments
    }

    /// A file for a chart, if charts are wanted.
    pub fn chart(&self, name: &str) -> Option<PathBuf> {
        let folder: &Path = self.charts.as_deref()?;
        std::fs::create_dir_all(folder).expect("the charts' folder is made");
        Some(folder.join(format!("bench-{name}.svg")))
    }
}
