// What cannot be used, as Python's InputError says it: what was given, what was expected, what to do.
import { EngineError, type Series } from "../engine/engine";

/** `series`: to choose one of. */
export function refusal(given: string, expected: string, remedy: string, series?: Series[]): EngineError {
  return new EngineError({ message: `${given}; expected ${expected}; ${remedy}`, given, expected, remedy, ...(series && { series }) }, false);
}
