// The scan's voxels as they arrive, coarse first: the nearest slice stands in for one that has not arrived yet.
import type { Index, Slice, VoxelType } from "../engine/engine";
import type { Window } from "./windowing";

const SAMPLES = 200_000; // voxels from which the range of intensities is estimated
const [DARKEST, BRIGHTEST] = [0.02, 0.98]; // fractions of them between which the scan's own window lies

export class Voxels {
  readonly data: Int16Array | Float32Array; // i fastest
  private readonly bytes: Uint8Array;
  private readonly nearest: Int32Array; // for each slice, the one that is shown; -1: none yet
  private readonly sliceBytes: number;
  /** Slices that have arrived. */
  count = 0;

  constructor(
    readonly type: VoxelType,
    readonly shape: Index,
  ) {
    const [ni, nj, nk] = shape;
    this.data = new (type === "int16" ? Int16Array : Float32Array)(ni * nj * nk);
    this.bytes = new Uint8Array(this.data.buffer);
    this.nearest = new Int32Array(nk).fill(-1);
    this.sliceBytes = ni * nj * this.data.BYTES_PER_ELEMENT;
  }

  get isComplete(): boolean {
    return this.count === this.shape[2];
  }

  /** Store a slice. Throws RangeError if it is not one of this scan. */
  put({ k, bytes }: Slice): void {
    if (!(k >= 0 && k < this.shape[2]) || bytes.length !== this.sliceBytes) {
      throw new RangeError(`slice ${k} of ${bytes.length} bytes came for a scan of ${this.shape.join(" × ")} voxels`);
    }
    this.bytes.set(bytes, k * this.sliceBytes);
    if (this.nearest[k] !== k) this.count++;
    for (const way of [1, -1]) {
      for (let at = way > 0 ? k : k - 1; at >= 0 && at < this.shape[2] && this.isNearer(k, at); at += way) this.nearest[at] = k;
    }
  }

  /** The slice that is shown for slice `k`. */
  shown(k: number): number {
    return Math.max(this.nearest[k]!, 0);
  }

  at([i, j, k]: Index): number {
    const [ni, nj] = this.shape;
    return this.data[i + ni * (j + nj * this.shown(k))]!;
  }

  /** Of the slices so far, the lowest intensity and the window without the darkest and brightest voxels. */
  range(): { lowest: number; window: Window } {
    const { data, nearest } = this;
    const area = this.shape[0] * this.shape[1];
    const here = [...nearest.keys()].filter((k) => nearest[k] === k);
    const step = Math.max(1, Math.floor((here.length * area) / SAMPLES));
    const found: number[] = [];
    for (let n = 0; n < here.length * area; n += step) found.push(data[here[Math.floor(n / area)]! * area + (n % area)]!);
    const sorted = Float32Array.from(found).sort();
    const at = (fraction: number) => sorted[Math.round(fraction * (sorted.length - 1))] ?? 0;
    const [low, high] = at(DARKEST) < at(BRIGHTEST) ? [at(DARKEST), at(BRIGHTEST)] : [at(0), at(1)];
    return { lowest: at(0), window: { low, high: high > low ? high : low + 1 } };
  }

  private isNearer(k: number, at: number): boolean {
    const now = this.nearest[at]!;
    return now < 0 || Math.abs(k - at) < Math.abs(now - at);
  }
}
