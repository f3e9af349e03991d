"""Compare reading speed with the alternatives: prints a table.

python -m benchmarks.ingest [--data DIR] [--repeats N] [--only reading|scan]

Reading: radiographs of 2048 x 2048 pixels and 12 bits, uncompressed and in JPEG 2000, are made here. MR
series have the header of a real one if DIR/brain-mri-dicom exists, otherwise short ones. Each measurement is
a process of its own that has imported everything before its clock starts; files are in the page cache;
medians of N rounds. Contenders: a plain pydicom loop (read, rescale, stack by position; nothing is checked),
MONAI's LoadImage, and medtl (scan and read, with all its checks and a SHA-256 of every file). With two
workers, each contender gets two processes, started before the clock; arrays stay in the process that read
them. medtl's scan may start worker processes of its own for large folders.

Scan: 100,000 slices of 16 x 16 pixels with such headers, in 5,000 series, are listed by `scan`, and the
progress that it reports is counted. Memory is that of the process and its children, shared pages once.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

if TYPE_CHECKING:
    from medtl.data.prepared import PreparedDataset
    from medtl.imaging.series import Series

DEFAULT_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
RADIOGRAPHS, COMPRESSED, SERIES, SLICES = 24, 24, 20, 22
CONTENDERS = ("plain", "monai", "medtl")
KINDS = ("uncompressed", "jpeg2000", "series")
PREPARED_SIZES = {"uncompressed": (512, 512), "series": (SLICES, 128, 128)}
ROUNDS = 50
SCANNED_SERIES, SCANNED_SLICES = 5_000, 20
LAYOUTS = ("a folder each", "one folder")
NUMBER = "123456"  # in the headers of templates, where each series has its own
SAMPLE_SECONDS = 0.2


def plain_planes(unit: Path) -> np.ndarray:
    """Return float32 (D, H, W) of a file, or of the slices of a folder, read by hand."""
    import pydicom

    slices = [pydicom.dcmread(path) for path in (sorted(unit.iterdir()) if unit.is_dir() else [unit])]
    if len(slices) > 1:
        slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    planes = [
        one.pixel_array.astype(np.float32) * float(one.get("RescaleSlope", 1))
        + float(one.get("RescaleIntercept", 0))
        for one in slices
    ]
    return np.stack(planes)


def read_plainly(unit: Path) -> np.dtype:
    """Read a unit by the plain loop; arrays stay in the process that read them."""
    return plain_planes(unit).dtype


def read_with_monai(unit: Path) -> np.dtype:
    """Read a file or a folder of slices with MONAI."""
    from monai.transforms import LoadImage

    loader = LoadImage(reader="PydicomReader", image_only=True, dtype=np.float32)
    return np.asarray(loader(str(unit))).dtype


def read_with_medtl(series: "Series") -> np.dtype:
    """Read a series that medtl's scan has found."""
    from medtl.imaging.reader import read_series

    return read_series(series).pixels.dtype


def read_all(contender: str, units: list[Path], pool: Executor | None) -> None:
    """Read every unit, in the pool if there is one, and discard it, as a batch job would."""
    together = pool.map if pool else map
    if contender == "medtl":
        from medtl.imaging.reader import scan

        kinds = together(read_with_medtl, scan(units, workers=None if pool else 1).series)
    else:
        kinds = together(read_plainly if contender == "plain" else read_with_monai, units)
    assert all(kind == np.float32 for kind in kinds)


def measure(contender: str, kind: str, workers: int, folder: Path) -> dict[str, float]:
    """Read a folder in this process; return its seconds and the peak memory of it and its children."""
    units = sorted((folder / kind).iterdir())
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    read_all(contender, units[: 4 * workers], pool)  # imports; each worker starts its decoder child
    started = time.perf_counter()
    read_all(contender, units, pool)
    seconds = time.perf_counter() - started
    if pool:
        pool.shutdown()
    peaks = [
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return {"seconds": seconds, "self_mib": peaks[0], "child_mib": peaks[1]}


def measure_prepared(kind: str, workers: int, folder: Path) -> dict[str, float]:
    """Return units per second read from the prepared dataset in batches of 16, and the peak MiB.

    Radiographs are prepared at 512 x 512, MR series at 22 x 128 x 128.
    """
    from medtl.data.prepared import prepare_samples
    from medtl.data.task import Sample
    from medtl.imaging.preprocessing import PreprocessingConfig
    from medtl.imaging.reader import scan

    found = scan(folder / kind).series
    samples = [Sample(str(number), series, str(number)) for number, series in enumerate(found)]
    prepared = prepare_samples(samples, PreprocessingConfig(size=PREPARED_SIZES[kind]))
    task = partial(read_prepared, prepared)
    if workers == 1:
        rates = [task(0)]
    else:
        with ProcessPoolExecutor(workers, get_context("fork")) as pool:
            rates = list(pool.map(task, range(workers)))
    return {"rate": sum(rates), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def read_prepared(prepared: "PreparedDataset", _: int) -> float:
    """Return units per second of one process, over `ROUNDS` rounds."""
    count = len(prepared.sample_ids)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for start in range(0, count, 16):
            prepared.read(np.arange(start, min(start + 16, count)))
    return ROUNDS * count / (time.perf_counter() - started)


def make_scanned(folder: Path, data: Path, layout: str) -> None:
    """Write many series, whose files differ from those of one series in their numbers and UIDs alone."""
    header = real_header(data)
    templates = [small_slice(place, header) for place in range(SCANNED_SLICES)]
    for series, own in ((number, f"{number:06d}") for number in range(SCANNED_SERIES)):
        home = folder if layout == "one folder" else folder / f"{series // 100:02d}" / own
        home.mkdir(parents=True, exist_ok=True)
        for place, template in enumerate(templates):
            content = template.replace(NUMBER.encode(), own.encode())
            (home / f"{own}-{place * 7 % SCANNED_SLICES:02d}.dcm").write_bytes(content)


def small_slice(place: int, header) -> bytes:
    """Return a slice as a file, with NUMBER in all that identifies its series."""
    dataset = mr_slice(np.full((16, 16), place, "uint16"), 0, place, header)
    dataset.PatientID = f"phantom {NUMBER}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.1.{NUMBER}", f"1.2.2.{NUMBER}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{NUMBER}.{place}"
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def measure_scan(folder: Path) -> dict[str, float]:
    """Scan a folder in this process; return seconds, CPU seconds, peak MiB and what the watcher saw."""
    from medtl.core.progress import Watcher
    from medtl.imaging.dicom import reader  # noqa: F401 as in a process that has read before
    from medtl.imaging.reader import scan

    reports, peaks, ended = [], [], threading.Event()
    watcher = Watcher()
    watcher.progress = lambda *report: reports.append(report)  # type: ignore[method-assign]
    sampler = threading.Thread(target=sample_memory, args=(peaks, ended))
    sampler.start()
    before, started = cpu_seconds(), time.perf_counter()
    found = scan(folder, watcher=watcher)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    ended.set()
    sampler.join()
    assert len(found.series) == SCANNED_SERIES and not found.refusals and not found.left_out
    return {"seconds": seconds, "cpu": cpu, "mib": max(peaks) / 2**20, "reports": len(reports)}


def sample_memory(peaks: list[int], ended: threading.Event) -> None:
    """Append the memory of this process and its children, until the work has ended."""
    process = psutil.Process()
    while not ended.wait(SAMPLE_SECONDS):
        sizes = []
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it has ended
                full = one.memory_full_info()
                sizes.append(getattr(full, "pss", full.rss))
        peaks.append(sum(sizes))


def cpu_seconds() -> float:
    """Return user and system seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def print_scan(data: Path) -> None:
    """Measure a scan of each layout, and print a table."""
    print("| files | layout | seconds | CPU seconds | peak MiB with children | reports of progress |")
    print("| --- | --- | --- | --- | --- | --- |")
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory(prefix="medtl-scan-") as name:
            make_scanned(Path(name), data, layout)
            row = run_child(["medtl", "scan", "2", name])
        numbers = f"{row['seconds']:.1f} | {row['cpu']:.1f} | {row['mib']:.0f} | {row['reports']:.0f}"
        print(f"| {SCANNED_SERIES * SCANNED_SLICES:,} | {layout} | {numbers} |")


def make_data(folder: Path, data: Path) -> None:
    """Write the files that are read."""
    from pydicom.uid import JPEG2000Lossless
    from scipy.ndimage import gaussian_filter, zoom

    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.random((512, 512)), 8)
    field = (field - field.min()) / np.ptp(field)
    large = zoom(field, 4, order=1)
    for number in range(RADIOGRAPHS):
        noisy = large * 3500 + rng.normal(0, 8, large.shape) + number
        dataset = radiograph(np.clip(noisy, 0, 4095).astype("uint16"), number)
        save(dataset, folder / "uncompressed" / f"{number}.dcm")
        if number < COMPRESSED:
            dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
            save(dataset, folder / "jpeg2000" / f"{number}.dcm")
    header = real_header(data)
    for number, place in product(range(SERIES), range(SLICES)):
        pixels = np.clip(field[:320, :280] * 900 + rng.normal(0, 10, (320, 280)), 0, 4095).astype("uint16")
        dataset = mr_slice(pixels, number, place, header)
        save(dataset, folder / "series" / str(number) / f"{place * 7 % SLICES:02d}.dcm")


def real_header(data: Path):
    """Return the header of a real MR slice without its pixels, or None."""
    import pydicom

    found = sorted((data / "brain-mri-dicom").rglob("*.dcm"))
    return pydicom.dcmread(found[0], stop_before_pixels=True) if found else None


def radiograph(pixels: np.ndarray, number: int):
    """Return a DX instance."""
    from pydicom.uid import DigitalXRayImageStorageForPresentation

    return described(pixels, DigitalXRayImageStorageForPresentation, "DX", number, 0)


def mr_slice(pixels: np.ndarray, number: int, place: int, header):
    """Return an MR instance, 5 mm above the previous one, with a real header if there is one."""
    from pydicom.uid import MRImageStorage

    own = described(pixels, MRImageStorage, "MR", number, place)
    own.ImageOrientationPatient, own.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5.0 * place]
    own.PixelSpacing, own.SliceThickness, own.SpacingBetweenSlices = [0.6875, 0.6875], 4, 5
    if header is None:
        return own
    for element in header:
        if element.tag not in own:
            own.add(element)
    return own


def described(pixels: np.ndarray, sop_class: str, modality: str, study: int, place: int):
    """Return an uncompressed instance of 12 bits."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    names = {"study": [study], "series": [study, "s"], "instance": [study, place]}
    # Joined by a mark: pydicom would take 1 and 11 for 11 and 1.
    uids = {
        name: generate_uid(entropy_srcs=[" ".join(map(str, [modality, name, *parts]))])
        for name, parts in names.items()
    }
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uids["study"], uids["series"]
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uids["instance"]
    dataset.Modality, dataset.PatientID = modality, f"phantom {study}"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def save(dataset, path: Path) -> None:
    """Write an instance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def run_child(arguments: list[str]) -> dict[str, float]:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    """Make the data, measure in turn, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("reading", "scan"))
    parser.add_argument("--child", nargs=4, metavar=("CONTENDER", "KIND", "WORKERS", "FOLDER"))
    parser.add_argument("--make", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    if chosen.make:
        make_data(chosen.make, chosen.data)
        return
    if chosen.child:
        contender, kind, workers, folder = chosen.child
        if kind == "scan":
            print(json.dumps(measure_scan(Path(folder))))
            return
        take = measure_prepared if contender == "prepared" else partial(measure, contender)
        print(json.dumps(take(kind, int(workers), Path(folder))))
        return
    if chosen.only != "reading":
        print_scan(chosen.data)
    if chosen.only == "scan":
        return
    with tempfile.TemporaryDirectory(prefix="medtl-ingest-") as name:
        folder = Path(name)
        # In a child, since the peak memory of a process counts that of the one which started it.
        subprocess.run(
            [sys.executable, "-m", "benchmarks.ingest", "--make", name, "--data", chosen.data], check=True
        )
        print_table(folder, chosen.repeats)


def print_table(folder: Path, repeats: int) -> None:
    """Measure each contender in turn, and print medians: units per second, MiB, and ratios to plain."""
    cases = list(product(KINDS, (1, 2), CONTENDERS))
    rows: dict[tuple, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for kind, workers, contender in cases:
            rows[kind, workers, contender].append(run_child([contender, kind, str(workers), str(folder)]))
    print("| what | workers | reader | per second | of plain | peak MiB, its largest child |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (kind, workers, contender), found in rows.items():
        units = len(list((folder / kind).iterdir()))
        seconds = statistics.median(row["seconds"] for row in found)
        plain = statistics.median(row["seconds"] for row in rows[kind, workers, "plain"])
        memory = "{:.0f}, {:.0f}".format(
            *(max(row[key] for row in found) for key in ("self_mib", "child_mib"))
        )
        print(
            f"| {kind} | {workers} | {contender} | {units / seconds:.1f} | {plain / seconds:.2f} | {memory} |"
        )
    for kind, workers in product(PREPARED_SIZES, (1, 2)):
        found = run_child(["prepared", kind, str(workers), str(folder)])
        plain = statistics.median(row["seconds"] for row in rows[kind, workers, "plain"])
        times = found["rate"] * plain / len(list((folder / kind).iterdir()))
        size = " x ".join(map(str, PREPARED_SIZES[kind]))
        numbers = f"{found['rate']:.0f} | {times:.0f} | {found['mib']:.0f}"
        print(f"| {kind} at {size} | {workers} | prepared | {numbers} |")


if __name__ == "__main__":
    main()
