// The parts of a model's card.json that the browser's engine needs.

export interface Intensity {
  modality: string;
  clip: [number, number];
  mean: number;
  sd: number;
  per_scan: boolean; // each scan is standardised first (MR has no unit)
  standardise_others?: boolean; // a scan of another modality is standardised first, to this mean and s.d.
}

export interface Preprocessing extends Intensity {
  axes: string; // the directions in which (d, h, w) grow, e.g. "SAR"
  spacing_mm: [number, number, number];
  spacing_range_mm: [number, number] | null; // within which the lesion's size decides
  interpolation: "linear" | "area";
  additional: Intensity[]; // images after the first
}

export interface Conditioning {
  reach: number; // s.d. of the Gaussian over distance, crop voxels
  likeness: number; // s.d. of the Gaussian over the difference of features
  margin: number; // logits
}

/** A small network that turns the signals of a prediction into its confidence. */
export interface Calibration {
  centre: number[];
  spread: number[];
  layers: { weights: number[][]; bias: number[] }[];
  warn_below: number; // probability of a lesion
}

/** The kinds of structure that a model was trained on, told apart by the features under a mask. */
export interface Classes {
  names: string[];
  means: number[][]; // of the features, for each class
  spread: number[]; // s.d. of each feature within a class
}

export interface Card {
  name: string;
  system: string;
  automatic: boolean;
  config: {
    crop: number; // side, voxels
    feature_width: number;
    polarity: boolean;
    click_maps: number[];
    prompt_kind: "sampler" | "positional";
    prompt_levels: number[];
  };
  preprocessing: Preprocessing;
  conditioning: Conditioning | null;
  mirrored?: boolean; // an answer is the mean of the logits in a crop and in its mirror image; older cards: false
  calibration?: Calibration | null; // cards of older models have none
  classes?: Classes | null; // likewise
  description: Record<string, string>;
  prompts: string[];
}
