//! The lines of Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

/// A label's name and value.
pub type Label = (&'static str, String);
/// The labels of a sample.
pub type Labels = Vec<Label>;

/// A label.
pub fn label(name: &'static str, value: &str) -> Label {
    (name, value.to_owned())
}

/// Metrics, each with its samples behind it.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    metric: String,
}

impl Page {
    /// Begins a metric that may fall.
    pub fn gauge(&mut self, name: &str, help: &str) {
        self.metric(name, "gauge", help);
    }

    /// Begins a metric that only grows.
    pub fn counter(&mut self, name: &str, help: &str) {
        self.metric(name, "counter", help);
    }

    /// Begins a metric of latencies.
    pub fn histogram(&mut self, name: &str, help: &str) {
        self.metric(name, "histogram", help);
    }

    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        name.clone_into(&mut self.metric);
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// A value of the metric.
    pub fn sample(&mut self, labels: &[Label], value: impl Display) {
        self.sample_of("", labels, value);
    }

    /// A histogram: bounds in seconds, rising, with how many were below; how many there are; all of them together.
    pub fn histogram_sample(
        &mut self,
        labels: &[Label],
        bounds: impl Iterator<Item = (f64, u64)>,
        count: u64,
        sum_seconds: f64,
    ) {
        let bounds = bounds.map(|(bound, below)| (bound.to_string(), below));
        for (bound, below) in bounds.chain([("+Inf".to_owned(), count)]) {
            let labels = [labels, &[label("le", &bound)]].concat();
            self.sample_of("_bucket", &labels, below);
        }
        self.sample_of("_sum", labels, sum_seconds);
        self.sample_of("_count", labels, count);
    }

    fn sample_of(&mut self, suffix: &str, labels: &[Label], value: impl Display) {
        let pairs: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
        let metric = std::mem::take(&mut self.metric);
        self.line(format_args!("{metric}{suffix}{labels} {value}"));
        self.metric = metric;
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// All of it.
    pub fn text(self) -> String {
        self.text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
