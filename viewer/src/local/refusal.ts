// The error for unusable input, worded like Python's InputError: what was given, what was expected, what to do.
import { EngineError, type Series } from "../engine/engine";

/** `series`: those to choose from. */
export function refusal(given: string, expected: string, remedy: string, series?: Series[]): EngineError {
  return new EngineError({ message: `${given}; expected ${expected}; ${remedy}`, given, expected, remedy, ...(series && { series }) }, false);
}
