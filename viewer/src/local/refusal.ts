// What cannot be used, as Python's InputError says it: what was given, what was expected, what to do.
import { EngineError } from "../engine/engine";

export function refusal(given: string, expected: string, remedy: string): EngineError {
  return new EngineError({ message: `${given}; expected ${expected}; ${remedy}`, given, expected, remedy }, false);
}
