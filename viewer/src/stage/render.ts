// The 3D view by NiiVue: the objects' shaded surfaces, with the body (a reduced copy of the scan) or alone.
import { Niivue, NVImage, NVMesh, SLICE_TYPE } from "@niivue/niivue";
import type { Index } from "../engine/engine";
import type { Camera } from "./camera";
import { toWorld } from "./geometry";
import type { Surface } from "./surface";
import type { Voxels } from "./voxels";
import type { Window } from "./windowing";

const MAX_SIDE = 192; // voxels of the reduced copy along the longest side
const THROUGH = 0.6; // opacity of a surface that lies inside the body
const TYPES = { int16: 4, float32: 16 } as const; // as NIfTI numbers them

export class Render extends Niivue {
  /** Whether the body is shown; if not, the objects' surfaces alone, if there are any. */
  body = true;
  private image: NVImage | null = null;

  constructor() {
    super({
      interactive: false, // the page's own pointer and keys decide what a click means
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      isOrientationTextVisible: false,
      crosshairWidth: 0,
      meshXRay: THROUGH,
      sliceType: SLICE_TYPE.RENDER,
      backColor: [0, 0, 0, 1],
      loadingText: "",
      logLevel: "silent",
    });
  }

  /** Begin to draw on a canvas. */
  async attach(canvas: HTMLCanvasElement): Promise<void> {
    await this.attachToCanvas(canvas);
    // NiiVue computes gradients of each scan and window for shaded volumes, which this page does not use: plain copies
    // in place of its filters make opening a scan several times faster.
    this.blurShader = this.sobelFirstOrderShader = this.passThroughShader ?? null;
  }

  /** Show another scan, or the current one with more of its slices. */
  async open(voxels: Voxels, affine: number[][], spacing_mm: Index, { low, high }: Window): Promise<void> {
    const buffer = reduced(voxels, affine, spacing_mm);
    const image = await NVImage.loadFromUrl({ url: "scan.nii", buffer, name: "scan.nii", colormap: "gray" });
    [image.cal_min, image.cal_max] = [low, high];
    this.close();
    this.addVolume(image);
    this.image = image;
  }

  close(): void {
    if (this.image) this.removeVolume(this.image);
    this.image = null;
  }

  set window({ low, high }: Window) {
    if (!this.image) return;
    [this.image.cal_min, this.image.cal_max] = [low, high];
    this.updateGLVolume();
  }

  /** Add an object's surface, whose points are voxel indices of the scan's own array. */
  addSurface(name: string, { points, triangles }: Surface, affine: number[][], colour: string): NVMesh {
    const world = new Float32Array(points.length);
    for (let n = 0; n < points.length; n += 3) world.set(toWorld(affine, [points[n]!, points[n + 1]!, points[n + 2]!]), n);
    const rgba = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const outward = isRightHanded(affine) ? triangles : triangles.map((_, n) => triangles[n - (n % 3) + 2 - (n % 3)]!);
    const mesh = new NVMesh(world, outward, name, new Uint8Array([...rgba, 255]), 1, true, this.gl);
    mesh.updateMesh(this.gl);
    this.meshes.push(mesh);
    return mesh;
  }

  dropSurface(mesh: NVMesh): void {
    mesh.unloadMesh(this.gl);
    this.meshes = this.meshes.filter((other) => other !== mesh);
  }

  show({ azimuth, elevation, approach }: Camera): void {
    Object.assign(this.scene, { renderAzimuth: azimuth, renderElevation: elevation, volScaleMultiplier: approach });
    this.drawScene();
  }

  private get showsBody(): boolean {
    return this.body || !this.meshes.length;
  }

  // In place of NiiVue's own choices

  /** Without the body, the view turns about the surfaces, and they fill it. */
  override setPivot3D(): void {
    super.setPivot3D();
    if (this.showsBody) return;
    const ends = [0, 1, 2].map((axis) => {
      const low = Math.min(...this.meshes.map(({ extentsMin }) => (extentsMin as number[])[axis]!));
      return [low, Math.max(...this.meshes.map(({ extentsMax }) => (extentsMax as number[])[axis]!))] as const;
    });
    this.pivot3D = ends.map(([low, high]) => (low + high) / 2) as [number, number, number];
    this.furthestFromPivot = Math.hypot(...ends.map(([low, high]) => high - low)) / 2;
  }

  override drawImage3D(...view: Parameters<Niivue["drawImage3D"]>): void {
    if (this.showsBody) super.drawImage3D(...view);
  }
}

/** A subsampled copy of the scan as a NIfTI file: all that a 3D view of a few hundred pixels can show. */
function reduced(voxels: Voxels, affine: number[][], spacing_mm: Index): ArrayBuffer {
  const { shape, data, type } = voxels;
  const finest = Math.max(...shape.map((n, axis) => n * spacing_mm[axis]!)) / MAX_SIDE;
  const step = spacing_mm.map((mm) => Math.max(1, Math.round(finest / mm))) as Index;
  const small = shape.map((n, axis) => Math.ceil(n / step[axis]!)) as Index;
  const out = new (type === "int16" ? Int16Array : Float32Array)(small[0] * small[1] * small[2]);
  let n = 0;
  for (let k = 0; k < small[2]; k++) {
    const slice = voxels.shown(k * step[2]) * shape[0] * shape[1];
    for (let j = 0; j < small[1]; j++) {
      const row = slice + j * step[1] * shape[0];
      for (let i = 0; i < small[0]; i++) out[n++] = data[row + i * step[0]]!;
    }
  }
  const wider = affine.map((row) => row.map((v, axis) => (axis < 3 ? v * step[axis]! : v)));
  const spacing = spacing_mm.map((mm, axis) => mm * step[axis]!);
  const file = NVImage.createNiftiArray(small, spacing, wider.flat(), TYPES[type], new Uint8Array(out.buffer));
  return file.slice().buffer as ArrayBuffer;
}

function isRightHanded([a, b, c]: number[][]): boolean {
  const [x, y, z] = [a!, b!, c!] as [number[], number[], number[]];
  return x[0]! * (y[1]! * z[2]! - y[2]! * z[1]!) - x[1]! * (y[0]! * z[2]! - y[2]! * z[0]!) + x[2]! * (y[0]! * z[1]! - y[1]! * z[0]!) > 0;
}
