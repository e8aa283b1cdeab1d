/** Tells the page that something changed, once of all that changed together; and sentences that nobody asked for. */
export class Bell {
  private readonly listeners = new Set<() => void>();
  private readonly readers = new Set<(text: string) => void>();
  private rung = false;

  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  onNotice(reader: (text: string) => void): () => void {
    this.readers.add(reader);
    return () => this.readers.delete(reader);
  }

  ring(): void {
    if (this.rung) return;
    this.rung = true;
    queueMicrotask(() => {
      this.rung = false;
      for (const listener of this.listeners) listener();
    });
  }

  notice(text: string): void {
    for (const reader of this.readers) reader(text);
  }
}
