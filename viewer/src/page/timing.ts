// How long a click takes from the press to the mask on the screen: a measure that the browser's tools and tests read.

const [ASKED, CLICK] = ["voxsam:asked", "voxsam:click"];

export function markAsked(): void {
  performance.clearMarks(ASKED);
  performance.mark(ASKED);
}

/** The answer was taken over; it is on the screen after the next frame. */
export function markAnswered(): void {
  if (!performance.getEntriesByName(ASKED).length) return;
  requestAnimationFrame(() => {
    performance.measure(CLICK, ASKED);
    performance.clearMarks(ASKED);
  });
}
