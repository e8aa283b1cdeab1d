import { button } from "./elements";

const KEPT_AS = "dsmr-theme"; // public/theme.js reads it, too

/** The theme's button: the browser's own theme until somebody chooses. `changed` is called after each change. */
export function themeButton(changed: () => void): void {
  const root = document.documentElement;
  const toggle = button("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", `${toggle.textContent} theme`);
    changed();
  };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem(KEPT_AS, root.dataset.theme);
    } catch {
      // A browser that keeps nothing: until the page is closed, then.
    }
    show();
  });
  dark.addEventListener("change", show);
  show();
}
