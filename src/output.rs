//! What people see: sizes, ages, tables, progress.

use bytesize::ByteSize;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use server::control::api::Progress;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Something that shows how far long work is.
pub trait ProgressView {
    /// How far it is now.
    fn show(&mut self, now: &Progress);
    /// It has ended, one way or the other.
    fn end(&mut self);
}

/// A bar on a terminal, plain lines elsewhere, nothing with `--json`.
pub fn progress(json: bool) -> Box<dyn ProgressView + Send> {
    match (json, std::io::stderr().is_terminal()) {
        (true, _) => Box::new(Silent),
        (false, true) => Box::new(Bar { bar: None }),
        (false, false) => Box::new(Lines { shown: None }),
    }
}

struct Silent;

impl ProgressView for Silent {
    fn show(&mut self, _: &Progress) {}
    fn end(&mut self) {}
}

struct Bar {
    bar: Option<ProgressBar>,
}

impl ProgressView for Bar {
    fn show(&mut self, now: &Progress) {
        let bar = self.bar.get_or_insert_with(|| {
            let template =
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(now.total).with_style(style)
        });
        bar.set_message(now.step.clone());
        bar.set_length(now.total);
        bar.set_position(now.done);
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

struct Lines {
    shown: Option<(Instant, String)>,
}

impl ProgressView for Lines {
    fn show(&mut self, now: &Progress) {
        let due = match &self.shown {
            Some((at, step)) => *step != now.step || at.elapsed() >= Duration::from_secs(5),
            None => true,
        };
        if due {
            match now.total {
                0 => eprintln!("{}", now.step),
                total => eprintln!("{}: {} of {}", now.step, size(now.done), size(total)),
            }
            self.shown = Some((Instant::now(), now.step.clone()));
        }
    }

    fn end(&mut self) {}
}

/// `1.5 GiB`
pub fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// `1m 5s`, `12ms`
pub fn duration(ms: u64) -> String {
    let rounded = if ms >= 10_000 { ms / 1000 * 1000 } else { ms };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

/// `950ns`, `12.3us`, `4.0ms`, `1.5s`: two or three digits that count.
pub fn brief(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{:.1}us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}ms", value / 1e6),
        _ => format!("{:.1}s", value / 1e9),
    }
}

/// A duration that may not be known.
pub fn maybe_duration(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), duration)
}

/// A table without walls, as other system tools print it.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table.add_rows(rows);
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(size(1 << 30), "1.0 GiB");
        assert_eq!(duration(65_432), "1m 5s");
        assert_eq!(duration(12), "12ms");
        assert_eq!(maybe_duration(None), "-");
        let brief = [950, 12_288, 4_000_000, 1_500_000_000].map(brief);
        assert_eq!(brief, ["950ns", "12.3us", "4.0ms", "1.5s"]);
    }
}
