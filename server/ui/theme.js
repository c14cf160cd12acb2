// Runs before the first paint: no flash of the other colours. (Not a module, which would run later.)
try {
  const chosen = localStorage.getItem("yolov8-fla.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage it is the system's choice.
}
