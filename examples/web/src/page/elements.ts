/** The page's elements by id. Throws where index.html and the code no longer fit together. */
export function element<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`index.html has no ${type.name} with the id ${id}`);
  return found;
}

export const button = (id: string): HTMLButtonElement => element(id, HTMLButtonElement);
export const input = (id: string): HTMLInputElement => element(id, HTMLInputElement);

/** A new element with text in it. */
export function made<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  text = "",
  attributes: Readonly<Record<string, string>> = {},
): HTMLElementTagNameMap[K] {
  const result = document.createElement(tag);
  result.textContent = text;
  for (const [name, value] of Object.entries(attributes)) result.setAttribute(name, value);
  return result;
}

/** Sets a text only where it is another one: screen readers announce, and browsers lay out, what is written. */
export function write(where: HTMLElement, text: string): void {
  if (where.textContent !== text) where.textContent = text;
}
