//! The table, for a terminal or for a Markdown file.

use std::fs;

use corespun::cpu;
use nix::sys::utsname::uname;

use crate::COLUMNS;

/// How the rows are printed.
#[derive(Clone, Copy)]
pub enum Form {
    Plain,
    Markdown,
}

impl Form {
    pub fn print_head(self) {
        match self {
            Form::Plain => {
                let columns = COLUMNS.map(|column| format!("{column:>15}")).concat();
                println!("{:<48}{columns}{:>9}", "ns (medians)", "× bare");
            }
            Form::Markdown => {
                println!("{}\n", machine());
                println!("| ns (medians) | {} | × bare |", COLUMNS.join(" | "));
                println!("|---|{}", "---:|".repeat(COLUMNS.len() + 1));
            }
        }
    }

    /// One row: the median of each column and half its spread, and the ratio to the floor.
    pub fn print_row(
        self,
        name: &str,
        cells: &[Option<(f64, f64)>; COLUMNS.len()],
        times_bare: Option<f64>,
    ) {
        let ratio = times_bare.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        // The floor is nobody's.
        let runtimes = cells[1..].iter().flatten().map(|(figure, _)| *figure);
        let best = runtimes.fold(f64::INFINITY, f64::min);
        let text = cells.map(|cell| match cell {
            None => "–".to_owned(),
            Some((figure, spread)) => self.cell(figure, spread, figure == best),
        });
        match self {
            Form::Plain => {
                let text = text.map(|text| format!("{text:>15}")).concat();
                println!("{name:<48}{text}{ratio:>9}");
            }
            Form::Markdown => println!("| {name} | {} | {ratio} |", text.join(" | ")),
        }
    }

    fn cell(self, figure: f64, spread: f64, best: bool) -> String {
        let digits = if figure < 1000.0 { 1 } else { 0 };
        match self {
            Form::Plain => format!("{figure:.digits$} ±{spread:.0}%"),
            Form::Markdown if best => format!("**{figure:.digits$}**"),
            Form::Markdown => format!("{figure:.digits$}"),
        }
    }
}

/// When and where: figures of two machines are no comparison.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": "));
    let cores = cpu::available().map_or(0, |cores| cores.iter().count());
    let kernel = uname().map(|name| name.release().to_string_lossy().into_owned());
    let load = read("/proc/loadavg");
    format!(
        "{}, {} ({cores} CPUs), Linux {}, load {} before the first row.",
        date(),
        model.map_or("an unknown machine", |(_, model)| model),
        kernel.unwrap_or_default(),
        load.split(' ').next().unwrap_or("unknown"),
    )
}

fn date() -> String {
    // SAFETY: both calls read and write the two variables only, whose bytes may all be zero.
    let date = unsafe {
        let (now, mut date) = (libc::time(std::ptr::null_mut()), std::mem::zeroed());
        libc::gmtime_r(&now, &mut date);
        date
    };
    let (year, month, day) = (date.tm_year + 1900, date.tm_mon + 1, date.tm_mday);
    format!("{year}-{month:02}-{day:02}")
}
